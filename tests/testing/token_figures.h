#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include "core/base/half.h"
#include "core/simd/token_sums.h"
#include "tests/testing/values.h"

// The figures about tokens by their definition, in two passes and in extended precision.
namespace kvcompress::testing {

inline ErrorSums TokenFigures(const TokenLayout& layout, DType dtype, std::span<const std::byte> original,
                              std::span<const std::byte> decoded) {
  ErrorSums figures;
  if (!layout.has_tokens()) return figures;
  const size_t count = original.size() / DTypeSize(dtype);
  const auto channels = static_cast<size_t>(layout.channels);
  const auto mean_of = [](const std::vector<long double>& values) {
    long double sum = 0;
    for (const long double value : values) sum += value;
    return sum / static_cast<long double>(values.size());
  };
  const auto deviations_of = [](const std::vector<long double>& values, long double mean) {
    long double sum = 0;
    for (const long double value : values) sum += (value - mean) * (value - mean);
    return sum;
  };
  long double deviations = 0;
  long double error_deviations = 0;
  for (size_t begin = 0; begin < count; begin += static_cast<size_t>(layout.sequence())) {
    for (size_t channel = 0; channel < channels; ++channel) {
      std::vector<long double> values;
      std::vector<long double> errors;
      for (size_t token = 0; token < layout.tokens; ++token) {
        const size_t at = begin + token * channels + channel;
        const float x = LoadAsF32(dtype, original.data(), at);
        const float y = LoadAsF32(dtype, decoded.data(), at);
        if (!std::isfinite(x)) continue;
        values.push_back(x);
        errors.push_back(static_cast<long double>(x) - static_cast<long double>(y));
        if (!std::isfinite(y)) error_deviations = std::numeric_limits<long double>::infinity();
      }
      if (values.empty()) continue;
      figures.token_count += values.size();
      const long double mean = mean_of(values);
      const long double own = deviations_of(values, mean);
      deviations += own;
      if (std::isfinite(error_deviations)) error_deviations += deviations_of(errors, mean_of(errors));
      if (own > 0) {
        const long double deviation = std::sqrt(own / static_cast<long double>(values.size()));
        figures.max_channel_constant =
            std::max(figures.max_channel_constant, static_cast<double>(std::abs(mean) / deviation));
      }
    }
  }
  figures.token_deviations = static_cast<double>(deviations);
  figures.token_error_deviations = static_cast<double>(error_deviations);
  return figures;
}

// Values like those of a real key: N(0, deviation) and, in 6 of each `dim` channels, a constant up to `constant`.
inline std::vector<std::byte> KeyLikeValues(DType dtype, size_t count, size_t dim, float constant,
                                            float deviation = 1.0f, uint32_t seed = 1) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(count * DTypeSize(dtype));
  for (size_t i = 0; i < count; ++i) {
    const size_t channel = i % dim;
    const size_t place = channel * 6 / dim;
    const bool has_constant = channel == 0 || place != (channel - 1) * 6 / dim;
    const float share = static_cast<float>(place + 1) / 6.0f * (place % 2 == 0 ? 1.0f : -1.0f);
    StoreFromF32(dtype, Bell(random) * deviation + (has_constant ? constant * share : 0.0f), bytes.data(), i);
  }
  return bytes;
}

}  // namespace kvcompress::testing
