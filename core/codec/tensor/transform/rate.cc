#include "core/codec/tensor/transform/rate.h"

#include <algorithm>
#include <cmath>

#include "core/base/elementary.h"

namespace kvcompress {
namespace {

using BitsByClass = std::array<double, ClassCounts::kClasses>;

// Of a symbol of this table and quantizer, on average; and how many of its values are odd.
struct SymbolRate {
  double bits = 0;
  double odd = 0;

  SymbolRate(const simd::ChannelTable& table, size_t quantizer) {
    for (uint8_t symbol = 0; symbol < simd::kEscape; ++symbol) {
      const uint8_t byte = quantizer == 1 ? symbol | simd::kOddQuantizer : symbol;
      const uint32_t frequency = table.symbols[byte] & 0xffff;
      if (frequency == 0) continue;
      const double part = static_cast<double>(frequency) / simd::kRansSlots;
      bits -= part * Log2(part);
      if (simd::ValueOf(symbol) % 2 != 0) odd += part;
    }
  }
};

// How often the first quantizer is used, where these parts of the values of each are odd.
double PartOfFirst(double odd_of_first, double odd_of_second) {
  std::array<double, 4> states = {0.25, 0.25, 0.25, 0.25};
  constexpr int kRounds = 200;
  for (int i = 0; i < kRounds; ++i) {
    std::array<double, 4> next = {};
    for (uint8_t s = 0; s < 4; ++s) {
      const double odd = simd::QuantizerOf(s) == 0 ? odd_of_first : odd_of_second;
      next[simd::NextState(s, false)] += states[s] * (1 - odd);
      next[simd::NextState(s, true)] += states[s] * odd;
    }
    states = next;
  }
  return states[0] + states[1];
}

BitsByClass MakeBits(bool trellis) {
  BitsByClass bits = {};
  for (int of = kMinClass; of <= kMaxClass; ++of) {
    const CodedClass coded(of);
    const simd::ChannelTable& table = ChannelTables(trellis)[static_cast<size_t>(coded.table - kMinClass)];
    const SymbolRate first(table, 0);
    double own = first.bits;
    if (trellis) {
      const SymbolRate second(table, 1);
      const bool even_odds = coded.low_bits > 0;
      const double part = even_odds ? 0.5 : PartOfFirst(first.odd, second.odd);
      own = part * first.bits + (1 - part) * second.bits;
    }
    bits[static_cast<size_t>(of - kMinClass)] = own + coded.low_bits;
  }
  return bits;
}

}  // namespace

void ClassCounts::Merge(const ClassCounts& other) {
  for (size_t i = 0; i < kClasses; ++i) values[i] += other.values[i];
  channels += other.channels;
}

double ClassCounts::Bits(bool trellis, double octaves) const {
  static const BitsByClass with_trellis = MakeBits(true), without = MakeBits(false);
  const BitsByClass& of_class = trellis ? with_trellis : without;
  constexpr double kLast = kClasses - 1;
  double sum = 0;
  for (size_t i = 0; i < kClasses; ++i) {
    if (values[i] == 0) continue;
    const double at = std::clamp(static_cast<double>(i) - 4 * octaves, 0.0, kLast);
    const auto below = static_cast<size_t>(std::min(std::floor(at), kLast - 1));
    const double part = at - static_cast<double>(below);
    sum += values[i] * ((1 - part) * of_class[below] + part * of_class[below + 1]);
  }
  return sum;
}

double ClassCounts::Noise(bool trellis, double octaves) const {
  // Points two units apart, and what the trellis saves; of narrow channels, the deviation itself.
  const double most = trellis ? 0.265 : 1.0 / 3;
  double sum = 0;
  for (size_t i = 0; i < kClasses; ++i) {
    if (values[i] == 0) continue;
    const double signal = Exp2(0.5 * (static_cast<int>(i) + kMinClass) - 2 * octaves);
    sum += values[i] * signal * most / (signal + most);
  }
  return sum;
}

double ClassCounts::Signal(double octaves) const {
  double sum = 0;
  for (size_t i = 0; i < kClasses; ++i) {
    if (values[i] > 0) sum += values[i] * Exp2(0.5 * (static_cast<int>(i) + kMinClass) - 2 * octaves);
  }
  return sum;
}

}  // namespace kvcompress
