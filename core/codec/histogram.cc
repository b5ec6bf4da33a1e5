#include "kvcompress/codec/histogram.h"

#include <algorithm>
#include <numeric>

#include "kvcompress/simd/histogram.h"

namespace kvcompress {

Histogram CountBytes(ByteSpan raw) {
  // Equal bytes in a row would wait for each other's counter: so each of eight neighbours has its own.
  constexpr size_t kWays = 8;
  std::array<Histogram, kWays> counts = {};
  size_t i = 0;
  for (; i + kWays <= raw.size(); i += kWays) {
    const auto bytes = LoadLE<uint64_t>(raw.data() + i);
    for (size_t way = 0; way < kWays; ++way) ++counts[way][bytes >> 8 * way & 0xff];
  }
  for (; i < raw.size(); ++i) ++counts[0][std::to_integer<size_t>(raw[i])];
  Histogram sum = {};
  for (const Histogram& count : counts) {
    for (size_t s = 0; s < 256; ++s) sum[s] += count[s];
  }
  return sum;
}

Histogram CountBytesLike(const Histogram& sample, ByteSpan raw) {
  // More bytes than these, outside of the few, are better counted one by one like the others.
  constexpr uint64_t kOthersOf = 64;
  std::array<uint8_t, 256> symbols;
  std::iota(symbols.begin(), symbols.end(), uint8_t{0});
  std::partial_sort(symbols.begin(), symbols.begin() + simd::kFewSymbols, symbols.end(),
                    [&](uint8_t a, uint8_t b) { return sample[a] != sample[b] ? sample[a] > sample[b] : a < b; });
  std::array<uint8_t, simd::kFewSymbols> few;
  std::copy_n(symbols.begin(), few.size(), few.begin());
  uint64_t others = 0;
  for (size_t i = few.size(); i < symbols.size(); ++i) others += sample[symbols[i]];
  if (others > std::accumulate(sample.begin(), sample.end(), uint64_t{0}) / kOthersOf) return CountBytes(raw);
  Histogram counts = {};
  simd::CountFew(few, reinterpret_cast<const uint8_t*>(raw.data()), raw.size(), counts);
  return counts;
}

}  // namespace kvcompress
