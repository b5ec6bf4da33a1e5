#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "core/base/half.h"
#include "core/simd/segment_values.h"

namespace kvcompress::simd::scalar {

float LoadScaled(DType dtype, const void* values, size_t count, float factor, float* out) {
  // As integers, magnitudes have the order that they have as numbers, and NaN are above them.
  int32_t largest = 0;
  for (size_t i = 0; i < count; ++i) {
    const float value = LoadAsF32(dtype, values, i);
    largest = std::max(largest, std::bit_cast<int32_t>(std::fabs(value)));
    out[i] = value * factor;
  }
  return std::bit_cast<float>(largest);
}

void NarrowLimited(DType dtype, const float* values, size_t count, void* out) {
  const float most = MaxFinite(dtype);
  for (size_t i = 0; i < count; ++i) StoreFromF32(dtype, std::clamp(values[i], -most, most), out, i);
}

void ChannelSums(const float* values, size_t tokens, size_t channels, const uint8_t* skip, float* sums) {
  std::fill_n(sums, channels, 0.0f);
  for (size_t t = 0; t < tokens; ++t) {
    if (skip[t] != 0) continue;
    for (size_t c = 0; c < channels; ++c) sums[c] += values[t * channels + c];
  }
}

void ChannelSquares(const float* values, size_t tokens, size_t channels, const uint8_t* skip, const float* means,
                    float* sums) {
  std::fill_n(sums, channels, 0.0f);
  for (size_t t = 0; t < tokens; ++t) {
    if (skip[t] != 0) continue;
    for (size_t c = 0; c < channels; ++c) {
      const float d = values[t * channels + c] - means[c];
      sums[c] += d * d;
    }
  }
}

void TokenEnergies(const float* values, size_t tokens, size_t channels, const float* means, const float* weights,
                   float* energies) {
  constexpr size_t kParts = 16;
  for (size_t t = 0; t < tokens; ++t) {
    float parts[kParts] = {};
    for (size_t c = 0; c < channels; ++c) {
      const float d = values[t * channels + c] - means[c];
      parts[c % kParts] += d * d * weights[c];
    }
    for (size_t apart = kParts / 2; apart > 0; apart /= 2) {
      for (size_t i = 0; i < apart; ++i) parts[i] += parts[i + apart];
    }
    energies[t] = parts[0];
  }
}

void AddToChannels(const float* addends, size_t channels, float* values, size_t count) {
  for (size_t i = 0; i < count; ++i) values[i] += addends[i % channels];
}

void PlaceStrip(const int32_t* points, size_t tokens, size_t channels, const Placing& placing) {
  const PlacedValues& to = placing.values;
  const float most = MaxFinite(to.dtype);
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t c = 0; c < channels; ++c) {
      const float value = static_cast<float>(points[t * kStripChannels + c]) * placing.unit + placing.means[c];
      StoreFromF32(to.dtype, std::clamp(value, -most, most), to.first, t * to.stride + c);
    }
  }
}

}  // namespace kvcompress::simd::scalar
