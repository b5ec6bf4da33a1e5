// Error sums in float lanes, for the target that is being compiled.

#if defined(KVCOMPRESS_SIMD_SUMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVCOMPRESS_SIMD_SUMS_INL_H_
#undef KVCOMPRESS_SIMD_SUMS_INL_H_
#else
#define KVCOMPRESS_SIMD_SUMS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>

#include "core/simd/error_sums.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Largest magnitudes, of values and of errors, for which sums of squares in binary32 lanes are safe: no overflow, and
// no loss to underflow that matters beside the largest square.
inline constexpr float kLaneMax = 0x1p50f;
inline constexpr float kLaneMin = 0x1p-50f;
constexpr bool SafeInLanes(double max_abs) { return max_abs == 0 || (max_abs >= kLaneMin && max_abs <= kLaneMax); }

// The terms of ErrorSums in lanes of binary32, moved to lanes of binary64 by Flush() before a lane has taken many:
// kFlushAfter additions to a lane lose less than 1e-6 in the worst case, 1e-8 in practice.
struct LaneSums {
  using DF = hn::ScalableTag<float>;
  using DD = hn::Repartition<double, DF>;
  using V = hn::Vec<DF>;
  using VD = hn::Vec<DD>;
  static constexpr size_t kFlushAfter = 16;

  V sum, squares, error_squares, abs_error, cross, max_error;

  // Written out, because what the compiler adds by itself has not the target's attributes.
  HWY_INLINE LaneSums() { sum = squares = error_squares = abs_error = cross = max_error = hn::Zero(DF()); }

  HWY_INLINE void Add(V x, V error) {
    const V magnitude = hn::Abs(error);
    sum = hn::Add(sum, x);
    squares = hn::MulAdd(x, x, squares);
    error_squares = hn::MulAdd(error, error, error_squares);
    abs_error = hn::Add(abs_error, magnitude);
    cross = hn::MulAdd(x, error, cross);
    max_error = hn::Max(max_error, magnitude);
  }
};

// Whether the squares of the deviations from the mean, which are a difference of lane sums, are large enough to be left
// by it.
inline bool DeviationsFollow(const ErrorSums& sums) { return sums.sum_deviations >= 0x1p-10 * sums.sum_squares; }

// Where LaneSums are flushed to.
struct WideSums {
  using DF = LaneSums::DF;
  using DD = LaneSums::DD;
  HWY_ALIGN double terms[5][HWY_MAX_BYTES / sizeof(double)] = {};

  static HWY_INLINE void AddTo(double* wide, LaneSums::V v) {
    const DD dd;
    const hn::Half<DF> half;
    const auto pairs = hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v));
    hn::Store(hn::Add(hn::Load(dd, wide), hn::PromoteTo(dd, pairs)), dd, wide);
  }
  // Leaves max_error, which needs no flushing, in `lanes`.
  HWY_INLINE void Flush(LaneSums& lanes) {
    AddTo(terms[0], lanes.sum);
    AddTo(terms[1], lanes.squares);
    AddTo(terms[2], lanes.error_squares);
    AddTo(terms[3], lanes.abs_error);
    AddTo(terms[4], lanes.cross);
    lanes.sum = lanes.squares = lanes.error_squares = lanes.abs_error = lanes.cross = hn::Zero(DF());
  }
  HWY_INLINE double Total(size_t term) const {
    const DD dd;
    return hn::GetLane(hn::SumOfLanes(dd, hn::Load(dd, terms[term])));
  }
  HWY_INLINE ErrorSums Totals(size_t count, LaneSums::V max_error) const {
    ErrorSums sums;
    sums.count = count;
    sums.sum = Total(0);
    sums.sum_squares = Total(1);
    if (count > 0)
      sums.sum_deviations = std::max(0.0, sums.sum_squares - sums.sum * sums.sum / static_cast<double>(count));
    sums.sum_error_squares = Total(2);
    sums.sum_abs_error = Total(3);
    sums.sum_cross = Total(4);
    const DF df;
    sums.max_abs_error = static_cast<double>(hn::GetLane(hn::MaxOfLanes(df, max_error)));
    return sums;
  }
};

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
