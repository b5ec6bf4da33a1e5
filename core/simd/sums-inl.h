// Error sums in float lanes, for the target that is being compiled.

#if defined(KVCOMPRESS_SIMD_SUMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVCOMPRESS_SIMD_SUMS_INL_H_
#undef KVCOMPRESS_SIMD_SUMS_INL_H_
#else
#define KVCOMPRESS_SIMD_SUMS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "core/base/half.h"
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
// kFlushAfter additions to a lane lose less than 1e-6 in the worst case, 1e-8 in practice. Those of x and x^2 are sums
// about `shift`, 0 or a value that all x are close to.
struct LaneSums {
  using DF = hn::ScalableTag<float>;
  using DD = hn::Repartition<double, DF>;
  using V = hn::Vec<DF>;
  using VD = hn::Vec<DD>;
  static constexpr size_t kFlushAfter = 16;

  V shift, sum, squares, error_squares, abs_error, cross, max_error;

  // Written out, because what the compiler adds by itself has not the target's attributes.
  HWY_INLINE explicit LaneSums(float shift_by) {
    shift = hn::Set(DF(), shift_by);
    sum = squares = error_squares = abs_error = cross = max_error = hn::Zero(DF());
  }

  HWY_INLINE void Add(V x, V error) {
    const V magnitude = hn::Abs(error);
    const V shifted = hn::Sub(x, shift);
    sum = hn::Add(sum, shifted);
    squares = hn::MulAdd(shifted, shifted, squares);
    error_squares = hn::MulAdd(error, error, error_squares);
    abs_error = hn::Add(abs_error, magnitude);
    cross = hn::MulAdd(x, error, cross);
    max_error = hn::Max(max_error, magnitude);
  }
};

// What LaneSums of `count` values are best made about, by a few of them: a value next to their mean where that is far
// from 0 for their deviations, else 0.
template <DType kT>
HWY_INLINE float ShiftOf(const uint8_t* values, size_t count) {
  constexpr size_t kSamples = 32;
  float samples[kSamples];
  double sum = 0;
  double squares = 0;
  for (size_t i = 0; i < kSamples; ++i) {
    samples[i] = LoadAsF32(kT, values, i * count / kSamples);
    sum += samples[i];
    squares += double{samples[i]} * samples[i];
  }
  const double mean = sum / kSamples;
  if (!(mean * mean > 0.9 * squares / kSamples)) return 0;
  const auto distance = [mean](float value) { return std::abs(value - mean); };
  return *std::ranges::min_element(samples, {}, distance);
}

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
  HWY_INLINE ErrorSums Totals(size_t count, const LaneSums& lanes) const {
    ErrorSums sums;
    if (count == 0) return sums;
    const DF df;
    const double shift = static_cast<double>(hn::GetLane(lanes.shift));
    const auto n = static_cast<double>(count);
    const double sum = Total(0);
    const double squares = Total(1);
    sums.count = count;
    sums.sum = sum + n * shift;
    sums.sum_squares = squares + shift * (2 * sum + n * shift);
    sums.sum_deviations = std::max(0.0, squares - sum * sum / n);
    sums.sum_error_squares = Total(2);
    sums.sum_abs_error = Total(3);
    sums.sum_cross = Total(4);
    sums.max_abs_error = static_cast<double>(hn::GetLane(hn::MaxOfLanes(df, lanes.max_error)));
    return sums;
  }
  // Whether what the Totals took from differences of sums, the squares of the deviations from the mean and, about a
  // shift, the squares of the values, is large enough to be left by it.
  HWY_INLINE bool DifferencesFollow(const ErrorSums& totals, const LaneSums& lanes) const {
    const double squares = Total(1);
    if (hn::GetLane(lanes.shift) == 0) return totals.sum_deviations >= 0x1p-10 * squares;
    // Of values that differ in their last digits alone, the squares may be next to nothing in binary32.
    constexpr double kLeastSquares = 0x1p-96;
    return totals.sum_deviations >= 0x1p-4 * squares && (squares == 0 || squares >= kLeastSquares);
  }
};

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
