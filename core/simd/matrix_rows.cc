#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/matrix_rows.cc"
#include "core/simd/matrix_rows.h"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>

#include "core/simd/half-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// As many sums as registers hold beside what goes into them.
constexpr size_t kTileRows = 4;
constexpr size_t kTileVectors = 2;

// `rows` x kVectors * kLanes sums, those of kRows rows from column `first` on.
template <size_t kRows, size_t kVectors>
HWY_INLINE void MultiplyTile(const float* rows, size_t stride, const float* matrix, size_t dim, size_t first,
                             float* out) {
  const DF df;
  VF sums[kRows][kVectors];
  for (auto& row : sums) {
    for (VF& sum : row) sum = hn::Zero(df);
  }
  for (size_t k = 0; k < dim; ++k) {
    VF factors[kVectors];
    for (size_t v = 0; v < kVectors; ++v) factors[v] = hn::LoadU(df, matrix + k * dim + first + v * kLanes);
    for (size_t r = 0; r < kRows; ++r) {
      const VF value = hn::Set(df, rows[r * stride + k]);
      for (size_t v = 0; v < kVectors; ++v) sums[r][v] = hn::Add(sums[r][v], hn::Mul(value, factors[v]));
    }
  }
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t v = 0; v < kVectors; ++v) hn::StoreU(sums[r][v], df, out + r * dim + first + v * kLanes);
  }
}

template <size_t kRows>
HWY_INLINE void MultiplyStripe(const float* rows, size_t stride, const float* matrix, size_t dim, float* out) {
  size_t first = 0;
  for (; first + kTileVectors * kLanes <= dim; first += kTileVectors * kLanes) {
    MultiplyTile<kRows, kTileVectors>(rows, stride, matrix, dim, first, out);
  }
  for (; first < dim; first += kLanes) MultiplyTile<kRows, 1>(rows, stride, matrix, dim, first, out);
}

}  // namespace

void MultiplyRowsAll(const float* rows, size_t count, size_t stride, const float* matrix, size_t dim, float* out) {
  if (dim % kLanes != 0) return scalar::MultiplyRows(rows, count, stride, matrix, dim, out);
  size_t r = 0;
  for (; r + kTileRows <= count; r += kTileRows) {
    MultiplyStripe<kTileRows>(rows + r * stride, stride, matrix, dim, out + r * dim);
  }
  for (; r < count; ++r) MultiplyStripe<1>(rows + r * stride, stride, matrix, dim, out + r * dim);
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(MultiplyRowsAll);

void MultiplyRows(const float* rows, size_t count, size_t stride, const float* matrix, size_t dim, float* out) {
  HWY_DYNAMIC_DISPATCH(MultiplyRowsAll)(rows, count, stride, matrix, dim, out);
}

namespace scalar {

void MultiplyRows(const float* rows, size_t count, size_t stride, const float* matrix, size_t dim, float* out) {
  for (size_t r = 0; r < count; ++r) {
    float* const sums = out + r * dim;
    std::fill_n(sums, dim, 0.0f);
    for (size_t k = 0; k < dim; ++k) {
      const float value = rows[r * stride + k];
      for (size_t j = 0; j < dim; ++j) sums[j] += value * matrix[k * dim + j];
    }
  }
}

}  // namespace scalar
}  // namespace kvcompress::simd
#endif  // HWY_ONCE
