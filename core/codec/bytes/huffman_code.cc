#include "core/codec/bytes/huffman_code.h"

#include <algorithm>
#include <span>

#include "core/codec/bits.h"

namespace kvcompress {
namespace {

// Codes with their first bit highest, as canonical codes are counted; of each length, the first one.
std::array<uint32_t, kMaxCodeBits + 1> FirstCodes(const CodeLengths& lengths) {
  std::array<uint32_t, kMaxCodeBits + 1> count = {};
  for (const uint8_t length : lengths) ++count[length];
  std::array<uint32_t, kMaxCodeBits + 1> first = {};
  count[0] = 0;
  for (size_t bits = 1; bits <= kMaxCodeBits; ++bits) first[bits] = (first[bits - 1] + count[bits - 1]) << 1;
  return first;
}

// The lowest `bits` bits in the opposite order.
uint32_t Reverse(uint32_t code, int bits) {
  code = (code & 0x5555) << 1 | (code >> 1 & 0x5555);
  code = (code & 0x3333) << 2 | (code >> 2 & 0x3333);
  code = (code & 0x0f0f) << 4 | (code >> 4 & 0x0f0f);
  code = (code & 0x00ff) << 8 | code >> 8;
  return code >> (16 - bits);
}

}  // namespace

// Package-merge. The list of a level holds each symbol, and a package of each two neighbours of the list before it, by
// weight. The first 2 m - 2 entries of the last list, opened down to the first level, hold a symbol once for each bit
// of its code.
CodeLengths OptimalLengths(const Histogram& counts) {
  std::array<uint64_t, 256> symbols;  // count, then byte value
  size_t m = 0;
  for (size_t s = 0; s < 256; ++s) {
    if (counts[s] > 0) symbols[m++] = uint64_t{counts[s]} << 8 | s;
  }
  std::sort(symbols.begin(), symbols.begin() + static_cast<ptrdiff_t>(m));

  std::array<std::array<bool, 512>, kMaxCodeBits> is_symbol;
  std::array<uint64_t, 512> list;
  std::array<uint64_t, 256> packages;
  size_t size = 0;
  for (auto& level : is_symbol) {
    const size_t package_count = size / 2;
    for (size_t i = 0; i < package_count; ++i) packages[i] = list[2 * i] + list[2 * i + 1];
    size = 0;
    for (size_t s = 0, p = 0; s < m || p < package_count; ++size) {
      level[size] = p == package_count || (s < m && symbols[s] >> 8 <= packages[p]);
      list[size] = level[size] ? symbols[s++] >> 8 : packages[p++];
    }
  }

  CodeLengths lengths = {};
  size_t taken = 2 * m - 2;
  for (size_t level = kMaxCodeBits; level-- > 0;) {
    const auto own = static_cast<size_t>(std::count(is_symbol[level].begin(), is_symbol[level].begin() + taken, true));
    for (size_t i = 0; i < own; ++i) ++lengths[symbols[i] & 0xff];
    taken = 2 * (taken - own);
  }
  return lengths;
}

CodeTable MakeCodes(const CodeLengths& lengths) {
  auto next = FirstCodes(lengths);
  CodeTable codes = {};
  for (size_t s = 0; s < 256; ++s) {
    const uint8_t bits = lengths[s];
    if (bits > 0) codes[s] = static_cast<uint16_t>(Reverse(next[bits]++, bits) << 4 | bits);
  }
  return codes;
}

void MakeSymbolTable(const CodeLengths& lengths, SymbolTable& table) {
  const CodeTable codes = MakeCodes(lengths);
  for (size_t s = 0; s < 256; ++s) {
    const uint32_t bits = lengths[s];
    if (bits == 0) continue;
    const auto entry = static_cast<uint16_t>(bits << 8 | s);
    for (uint32_t slot = codes[s] >> 4; slot < kCodeSlots; slot += 1u << bits) table[slot] = entry;
  }
}

void MakeRunTable(const SymbolTable& symbols, simd::PrefixRuns& runs) {
  for (uint32_t slot = 0; slot < kCodeSlots; ++slot) {
    uint32_t bytes = 0;
    uint32_t used = 0;
    uint32_t count = 0;
    uint32_t fits = 1;
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t entry = symbols[slot >> used];
      const uint32_t length = entry >> 8;
      fits &= used + length <= kMaxCodeBits;
      bytes |= (entry & 0xff) << 8 * i;
      used += fits ? length : 0;
      count += fits;
    }
    runs[slot] = uint64_t{bytes} << 32 | count << 8 | used;
  }
}

uint8_t* WriteLengths(const CodeLengths& lengths, uint8_t* out) {
  BitWriter writer(out);
  uint32_t sum = 0;
  for (size_t s = 0; sum < kCodeSlots;) {
    writer.Write(lengths[s], 4);
    if (lengths[s] == 0) {
      const size_t begin = s;
      while (lengths[s] == 0) ++s;
      writer.Write(static_cast<uint32_t>(s - begin - 1), 8);
      continue;
    }
    sum += kCodeSlots >> lengths[s++];
  }
  return writer.Finish();
}

size_t ReadLengths(ByteSpan in, CodeLengths& lengths) {
  BitReader reader(in);
  lengths = {};
  uint32_t sum = 0;
  for (size_t s = 0; sum < kCodeSlots;) {
    uint32_t bits, run;
    if (s >= 256 || !reader.Read(4, bits) || bits > kMaxCodeBits) return 0;
    if (bits == 0) {
      if (!reader.Read(8, run)) return 0;
      s += run + 1;
      continue;
    }
    lengths[s++] = static_cast<uint8_t>(bits);
    sum += kCodeSlots >> bits;
  }
  return sum == kCodeSlots ? reader.Finish() : 0;
}

}  // namespace kvcompress
