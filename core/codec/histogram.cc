#include "kvcompress/codec/histogram.h"

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

}  // namespace kvcompress
