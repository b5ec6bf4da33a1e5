#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace kvcompress::testing {

// Values about 0, equal for equal seeds with one standard library.
inline std::vector<float> GaussianValues(size_t count, float deviation, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

}  // namespace kvcompress::testing
