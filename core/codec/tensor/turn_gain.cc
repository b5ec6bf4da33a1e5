#include "core/codec/tensor/turn_gain.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/base/elementary.h"
#include "core/simd/segment_values.h"

namespace kvcompress {

double LogVariances(const float* values, size_t tokens, size_t channels) {
  thread_local std::vector<uint8_t> none;
  thread_local std::vector<float> means, squares;
  none.assign(tokens, 0);
  means.resize(channels);
  squares.resize(channels);
  const float part = 1 / static_cast<float>(std::max<size_t>(tokens, 1));
  simd::ChannelSums(values, tokens, channels, none.data(), means.data());
  for (float& mean : means) mean *= part;
  simd::ChannelSquares(values, tokens, channels, none.data(), means.data(), squares.data());
  double sum = 0;
  for (const float square : squares) sum += Log2(static_cast<double>(square * part) + 0x1p-300);
  return sum;
}

simd::RotaryGain TurnGain(double as_it_is, double turned_back, size_t channels, size_t values) {
  simd::RotaryGain gain = {.values = values};
  if (!(turned_back < as_it_is)) return gain;
  gain.turned = values;
  gain.bits = (as_it_is - turned_back) / (2 * static_cast<double>(channels)) * static_cast<double>(values);
  return gain;
}

}  // namespace kvcompress
