#pragma once

#include <cstddef>
#include <cstdint>

#include "core/base/dtype.h"

// Values that saturate, of dtypes that are not opaque; nothing needs alignment. `out` may be the values.
namespace kvcompress::simd {

// The bits of the largest finite magnitude that a value can have.
constexpr uint32_t MaxFiniteBits(DType dtype) {
  return dtype == DType::kF8E4M3 ? InfinityBits(dtype) : InfinityBits(dtype) - 1;
}

// Values whose KeyOrder::kValue keys (key_counts.h) lie outside of [lower, upper] become the nearest of these. NaN
// stays.
void LimitKeys(DType dtype, const std::byte* values, size_t count, uint32_t lower, uint32_t upper, std::byte* out);

// The bits of the largest finite magnitude that a value has; 0 if none is finite.
uint32_t LargestFinite(DType dtype, const std::byte* values, size_t count);

// The bits of the largest magnitude, NaN and infinities above all.
uint32_t LargestBits(DType dtype, const std::byte* values, size_t count);

// Whether a value is subnormal in binary32.
bool HasSubnormals(DType dtype, const void* values, size_t count);

// Finite magnitudes above that of the bits `limit` become this, infinities that of `of_infinity`, with their signs. NaN
// becomes +0.
void ClampMagnitudes(DType dtype, const std::byte* values, size_t count, uint32_t limit, uint32_t of_infinity,
                     std::byte* out);

}  // namespace kvcompress::simd
