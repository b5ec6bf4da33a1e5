#pragma once

#include <cstddef>
#include <cstdint>

#include "core/base/dtype.h"

// The finite ones of a tensor's values, of dtypes that are not opaque; nothing needs alignment.
namespace kvcompress::simd {

// Sums about `center`, in binary64. In which order they are added up, and whether products are rounded before, depends
// on the instruction set.
struct Moments {
  float center = 0;
  uint64_t count = 0;
  double sum = 0;      // of x - center
  double squares = 0;  // of (x - center)^2
};

// Adds the finite ones of `count` values.
void AddMoments(DType dtype, const std::byte* values, size_t count, Moments& moments);

// Writes the finite ones to `finite`, in their order, and returns how many they are. There is room for `count`.
size_t TakeFinite(DType dtype, const std::byte* values, size_t count, float* finite);

}  // namespace kvcompress::simd
