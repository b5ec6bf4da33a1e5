#include "core/codec/rans_levels.h"

#include <algorithm>
#include <array>
#include <bit>
#include <numeric>

#include "core/codec/bits.h"
#include "core/codec/rans_tables.h"

namespace kvcompress {
namespace {

// An octave has 1, 2, 4 or 8 levels. Level 1 is one count; 0 is none.
constexpr int kMaxStepBits = 3;
constexpr uint32_t kMaxOctaves = 23;  // so that the weights of all symbols sum to less than 2^40
constexpr uint32_t kMaxRiceBits = 3;

// 256 times 2^(i / 8), rounded down.
constexpr std::array<uint16_t, 8> kOctave = {256, 279, 304, 331, 362, 394, 430, 469};

using Levels = std::array<uint8_t, 256>;

uint64_t WeightOf(uint32_t level, uint32_t step_bits) {
  const uint32_t step = level - 1;
  const uint32_t part = step & ((1u << step_bits) - 1);
  return uint64_t{kOctave[part << (kMaxStepBits - step_bits)]} << (step >> step_bits);
}

Histogram FrequenciesOf(const Levels& levels, uint32_t step_bits) {
  std::array<uint64_t, 256> weights;
  for (size_t s = 0; s < 256; ++s) weights[s] = levels[s] > 0 ? WeightOf(levels[s], step_bits) : 0;
  return NormalizeToSlots(weights);
}

// Rounding a logarithm to 2^-p octaves costs a symbol some 2^-2p / 35 bits, and each p costs every different one about
// a bit.
uint32_t StepBitsFor(const Histogram& counts) {
  const auto total = std::accumulate(counts.begin(), counts.end(), uint64_t{0});
  const auto different = static_cast<uint64_t>(std::ranges::count_if(counts, [](uint32_t n) { return n > 0; }));
  uint32_t bits = 0;
  while (bits < kMaxStepBits && total > 45 * different << 2 * bits) ++bits;
  return bits;
}

Levels LevelsOf(const Histogram& counts, uint32_t step_bits) {
  const auto octaves = static_cast<uint32_t>(std::bit_width(*std::ranges::max_element(counts)));
  const uint32_t shift = octaves - std::min(octaves, kMaxOctaves);
  Levels levels = {};
  for (size_t s = 0; s < 256; ++s) {
    if (counts[s] == 0) continue;
    const uint32_t log = QuickLog2(std::max(1u, counts[s] >> shift));
    levels[s] = static_cast<uint8_t>(1 + (((log << step_bits) + 2048) >> 12));
  }
  return levels;
}

// What is written of the levels from the first to the last that is not 0: their differences, and how many zeros follow
// one another.
template <typename Difference, typename Zeros>
void Walk(const Levels& levels, size_t first, size_t last, Difference difference, Zeros zeros) {
  int before = 0;
  for (size_t s = first; s <= last; ++s) {
    const int change = levels[s] - before;
    difference(change < 0 ? -2 * change - 1 : 2 * change);
    if (levels[s] > 0) {
      before = levels[s];
      continue;
    }
    const size_t begin = s;
    while (levels[s + 1] == 0) ++s;
    zeros(static_cast<uint32_t>(s - begin + 1));
  }
}

uint32_t BestRiceBits(const Levels& levels, size_t first, size_t last) {
  std::array<size_t, kMaxRiceBits + 1> sizes = {};
  const auto add = [&](int code) {
    for (uint32_t bits = 0; bits < sizes.size(); ++bits) sizes[bits] += static_cast<size_t>(code >> bits) + 1 + bits;
  };
  Walk(levels, first, last, add, [](uint32_t) {});
  return static_cast<uint32_t>(std::ranges::min_element(sizes) - sizes.begin());
}

// `count` ones and a zero.
void WriteUnary(uint32_t count, BitWriter& writer) {
  for (; count >= 16; count -= 16) writer.Write(0xffff, 16);
  writer.Write((1u << count) - 1, static_cast<int>(count) + 1);
}

// At most `limit` ones.
bool ReadUnary(BitReader& reader, uint32_t limit, uint32_t& count) {
  uint32_t bit = 1;
  for (count = 0; reader.Read(1, bit) && bit == 1; ++count) {
    if (count == limit) return false;
  }
  return bit == 0;
}

class LevelReader {
 public:
  explicit LevelReader(ByteSpan in) : reader_(in) {}

  size_t Read(Histogram& frequencies) {
    uint32_t step_bits, first, last;
    if (!reader_.Read(2, step_bits) || !reader_.Read(2, rice_bits_) || !reader_.Read(8, first) ||
        !reader_.Read(8, last)) {
      return 0;
    }
    max_level_ = kMaxOctaves << step_bits;
    Levels levels = {};
    for (uint32_t s = first; s <= last; ++s) {
      if (!ReadLevel(levels[s])) return 0;
      if (levels[s] > 0) continue;
      uint32_t zeros;
      if (s == first || !ReadRun(zeros) || zeros > last - s) return 0;
      s += zeros - 1;
    }
    if (first > last || levels[last] == 0) return 0;
    frequencies = FrequenciesOf(levels, step_bits);
    return reader_.Finish();
  }

 private:
  bool ReadLevel(uint8_t& level) {
    uint32_t high, low;
    if (!ReadUnary(reader_, 2 * max_level_ >> rice_bits_, high) || !reader_.Read(static_cast<int>(rice_bits_), low)) {
      return false;
    }
    const auto code = static_cast<int>(high << rice_bits_ | low);
    const int value = before_ + ((code & 1) == 1 ? -(code + 1) / 2 : code / 2);
    if (value < 0 || value > static_cast<int>(max_level_)) return false;
    level = static_cast<uint8_t>(value);
    if (value > 0) before_ = value;
    return true;
  }

  bool ReadRun(uint32_t& zeros) {
    uint32_t bits, low;
    if (!ReadUnary(reader_, 7, bits) || !reader_.Read(static_cast<int>(bits), low)) return false;
    zeros = (1u << bits) + low;
    return true;
  }

  BitReader reader_;
  uint32_t rice_bits_ = 0;
  uint32_t max_level_ = 0;
  int before_ = 0;  // the last level that is not 0
};

}  // namespace

size_t WriteLevels(const Histogram& counts, uint8_t* out, Histogram& frequencies) {
  const uint32_t step_bits = StepBitsFor(counts);
  const Levels levels = LevelsOf(counts, step_bits);
  frequencies = FrequenciesOf(levels, step_bits);
  size_t first = 0;
  size_t last = 255;
  while (levels[first] == 0) ++first;
  while (levels[last] == 0) --last;
  const uint32_t rice_bits = BestRiceBits(levels, first, last);

  BitWriter writer(out);
  writer.Write(step_bits, 2);
  writer.Write(rice_bits, 2);
  writer.Write(static_cast<uint32_t>(first), 8);
  writer.Write(static_cast<uint32_t>(last), 8);
  const auto difference = [&](int code) {
    WriteUnary(static_cast<uint32_t>(code) >> rice_bits, writer);
    writer.Write(static_cast<uint32_t>(code) & ((1u << rice_bits) - 1), static_cast<int>(rice_bits));
  };
  const auto zeros = [&](uint32_t count) {
    const int bits = std::bit_width(count) - 1;
    WriteUnary(static_cast<uint32_t>(bits), writer);
    writer.Write(count - (1u << bits), bits);
  };
  Walk(levels, first, last, difference, zeros);
  return static_cast<size_t>(writer.Finish() - out);
}

size_t ReadLevels(ByteSpan in, Histogram& frequencies) { return LevelReader(in).Read(frequencies); }

}  // namespace kvcompress
