#pragma once

#include <cstddef>

// Rows times a matrix, alike on every CPU: basic operations in one order, never fused.
namespace kvcompress::simd {

// `count` rows of `dim` values, `stride` floats apart, to as many rows of `out`, dim floats apart, which do not overlap
// with them: out[r][j] = the sum of rows[r][k] * matrix[k][j] over k in rising order, from 0 on.
void MultiplyRows(const float* rows, size_t count, size_t stride, const float* matrix, size_t dim, float* out);

namespace scalar {
void MultiplyRows(const float* rows, size_t count, size_t stride, const float* matrix, size_t dim, float* out);
}  // namespace scalar

}  // namespace kvcompress::simd
