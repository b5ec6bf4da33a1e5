#include "core/codec/bytes/huffman_code.h"

#include <algorithm>
#include <limits>

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

  // One that is smaller than all and one that is larger stand around both.
  std::array<uint64_t, 258> weights, packages;
  weights[0] = packages[0] = 0;
  for (size_t i = 0; i < m; ++i) weights[i + 1] = symbols[i] >> 8;
  weights[m + 1] = std::numeric_limits<uint64_t>::max();
  std::array<std::array<uint16_t, 512>, kMaxCodeBits> symbols_before;  // each entry of a list
  std::array<uint64_t, 512> list;
  size_t size = 0;
  for (auto& before : symbols_before) {
    const size_t package_count = size / 2;
    for (size_t i = 0; i < package_count; ++i) packages[i + 1] = list[2 * i] + list[2 * i + 1];
    packages[package_count + 1] = std::numeric_limits<uint64_t>::max() - 1;
    size = m + package_count;
    before[size] = static_cast<uint16_t>(m);
    // Merged from both ends at once, without branches: what comes next waits for what came before.
    size_t low = 0, high = m;  // the symbols up to here, and from here on, are in the list
    for (size_t i = 0, end = size; i < end; ++i) {
      const uint64_t symbol = weights[low + 1], package = packages[i - low + 1];
      const uint64_t last_symbol = weights[high], last_package = packages[end - high];
      list[i] = std::min(symbol, package);
      before[i] = static_cast<uint16_t>(low);
      low += symbol <= package ? 1 : 0;
      high -= last_symbol > last_package ? 1 : 0;
      --end;
      list[end] = std::max(last_symbol, last_package);
      before[end] = static_cast<uint16_t>(high);
    }
  }

  std::array<uint8_t, 257> ends = {};  // how many levels take so many symbols
  size_t taken = 2 * m - 2;
  for (size_t level = kMaxCodeBits; level-- > 0;) {
    const size_t own = symbols_before[level][taken];
    ++ends[own];
    taken = 2 * (taken - own);
  }
  CodeLengths lengths = {};
  uint8_t length = 0;
  for (size_t i = m; i-- > 0;) {
    length = static_cast<uint8_t>(length + ends[i + 1]);
    lengths[symbols[i] & 0xff] = length;
  }
  return lengths;
}

simd::PrefixCodes MakeCodes(const CodeLengths& lengths) {
  auto next = FirstCodes(lengths);
  simd::PrefixCodes codes = {};
  for (size_t s = 0; s < 256; ++s) {
    codes.lengths[s] = lengths[s];
    if (lengths[s] > 0) codes.bits[s] = Reverse(next[lengths[s]]++, lengths[s]);
  }
  return codes;
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
