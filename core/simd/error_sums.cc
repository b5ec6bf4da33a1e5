#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/error_sums.cc"
#include "core/simd/error_sums.h"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "core/base/half.h"
#include "core/simd/exact_terms.h"
#include "core/simd/half-inl.h"
#include "core/simd/subnormals-inl.h"
#include "core/simd/sums-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// Values are looked at in runs of this many: first at their magnitudes, then, in the cache, at the errors.
constexpr size_t kRun = 1024;
// Values of two bytes in the longest vectors.
constexpr size_t kMultiple = 32;
constexpr size_t kPrefetchBytes = 4096;

// The bits of the largest magnitude of both arrays.
template <DType kT>
HWY_INLINE Bits<kT> MaxMagnitude(const uint8_t* a, const uint8_t* b, size_t bytes) {
  const hn::ScalableTag<Bits<kT>> d;
  const auto mask = hn::Set(d, static_cast<Bits<kT>>(Bits<kT>(~Bits<kT>{0}) >> 1));
  const size_t step = hn::Lanes(d) * sizeof(Bits<kT>);
  auto max_a = hn::Zero(d);
  auto max_b = hn::Zero(d);
  for (size_t i = 0; i < bytes; i += step) {
    max_a = hn::Max(max_a, hn::And(LoadAt(d, a + i), mask));
    max_b = hn::Max(max_b, hn::And(LoadAt(d, b + i), mask));
  }
  return hn::GetLane(hn::MaxOfLanes(d, hn::Max(max_a, max_b)));
}

// What came of a run of finite values.
enum class Outcome { kMeasured, kNeedsOtherShift, kNeedsWideLanes };

// Measures values that are multiplied by `scale`, and then no larger than kLaneMax; without kScaled it is 1.
template <DType kT, bool kScaled>
HWY_INLINE Outcome MeasureRun(const uint8_t* original, const uint8_t* decoded, size_t count, float scale, float shift,
                              ErrorSums& sums) {
  const DF df;
  constexpr size_t kStep = hn::MaxLanes(DF()) * DTypeSize(kT);
  const size_t bytes = count * DTypeSize(kT);
  const bool is_enlarged = kT != DType::kF16 && scale > 1;  // some may be subnormal
  const VF scales = hn::Set(df, is_enlarged ? scale / kEnlarging : scale);
  const auto load = [&](const uint8_t* from) HWY_ATTR {
    const VF value = LoadF32<kT>(df, from);
    if constexpr (!kScaled) return value;
    return hn::Mul(is_enlarged ? Enlarge(df, value) : value, scales);
  };
  LaneSums lanes(kScaled ? shift * scale : shift);
  WideSums wide;
  size_t i = 0;
  while (i < bytes) {
    const size_t end = std::min(i + LaneSums::kFlushAfter * kStep, bytes);
    for (; i < end; i += kStep) {
      PrefetchAhead<kPrefetchBytes>(original + i, kStep);
      PrefetchAhead<kPrefetchBytes>(decoded + i, kStep);
      const VF x = load(original + i);
      lanes.Add(x, hn::Sub(x, load(decoded + i)));
    }
    wide.Flush(lanes);
  }
  ErrorSums own = wide.Totals(count, lanes);
  // Made smaller, errors may have become 0.
  const bool lost_errors = scale < 1 && own.max_abs_error == 0;
  if (!SafeInLanes(own.max_abs_error) || lost_errors) return Outcome::kNeedsWideLanes;
  if (!wide.DifferencesFollow(own, lanes)) return Outcome::kNeedsOtherShift;
  if (!DecodedSquaresFollow(own)) return Outcome::kNeedsWideLanes;
  if constexpr (kScaled) own.Unscale(scale, scale);
  sums = own;
  return Outcome::kMeasured;
}

// Measures a run of values whose largest magnitude, of the decoded ones as well, is `max_abs`, about a shift that may
// become another one.
template <DType kT>
HWY_INLINE Outcome MeasureShifted(const uint8_t* original, const uint8_t* decoded, size_t count, double max_abs,
                                  float& shift, ErrorSums& sums) {
  const auto measure = [&]() HWY_ATTR {
    if (SafeInLanes(max_abs)) return MeasureRun<kT, false>(original, decoded, count, 1, shift, sums);
    if (!std::isfinite(max_abs)) return Outcome::kNeedsWideLanes;
    return MeasureRun<kT, true>(original, decoded, count, max_abs < 1 ? 0x1p100f : 0x1p-100f, shift, sums);
  };
  const Outcome outcome = measure();
  if (outcome != Outcome::kNeedsOtherShift) return outcome;
  shift = ShiftOf<kT>(original, count);
  return measure();
}

// The sums of any values, in lanes of binary64.
template <DType kT>
class WideLanes {
 public:
  HWY_INLINE explicit WideLanes(float first) : first_(hn::Set(DF(), first)) {
    sum_ = deviations_ = squares_ = error_squares_ = abs_error_ = cross_ = decoded_squares_ = max_error_ =
        hn::Zero(DD());
  }

  HWY_INLINE void Add(VF x, VF y) {
    const DF df;
    const VF most = hn::Set(df, MaxFinite(kT));
    VF first = first_;
    const auto counts = hn::Le(hn::Abs(x), most);
    const auto is_held = hn::Le(hn::Abs(y), most);
    if (HWY_LIKELY(hn::AllTrue(df, hn::And(counts, is_held)))) {
      count_ += hn::Lanes(df);
    } else {
      count_ += hn::CountTrue(df, counts);
      has_infinite_error_ = has_infinite_error_ || !hn::AllFalse(df, hn::AndNot(is_held, counts));
      y = hn::IfThenElseZero(counts, hn::IfThenElse(is_held, y, x));
      x = hn::IfThenElseZero(counts, x);
      first = hn::IfThenElseZero(counts, first);
    }
    const hn::Half<DF> half;
    AddHalf(hn::LowerHalf(half, x), hn::LowerHalf(half, y), hn::LowerHalf(half, first));
    AddHalf(hn::UpperHalf(half, x), hn::UpperHalf(half, y), hn::UpperHalf(half, first));
  }

  HWY_INLINE void AddTo(ErrorSums& total) const {
    const DD dd;
    ExactTerms terms;
    terms.first = static_cast<double>(hn::GetLane(first_));
    terms.sums = {.count = count_,
                  .sum = Sum(sum_),
                  .sum_squares = Sum(squares_),
                  .sum_deviations = Sum(deviations_),
                  .sum_error_squares = Sum(error_squares_),
                  .sum_abs_error = Sum(abs_error_),
                  .sum_cross = Sum(cross_),
                  .max_abs_error = hn::GetLane(hn::MaxOfLanes(dd, max_error_))};
    terms.decoded_squares = Sum(decoded_squares_);
    if (has_infinite_error_) {
      constexpr double kInfinity = std::numeric_limits<double>::infinity();
      terms.sums.sum_error_squares = terms.sums.sum_abs_error = terms.sums.max_abs_error = kInfinity;
      terms.decoded_squares = kInfinity;
    }
    terms.AddTo(total);
  }

 private:
  using DD = hn::Repartition<double, DF>;
  using VD = hn::Vec<DD>;
  using VHalf = hn::Vec<hn::Half<DF>>;

  static HWY_INLINE double Sum(VD v) { return hn::GetLane(hn::SumOfLanes(DD(), v)); }

  HWY_INLINE void AddHalf(VHalf value, VHalf decoded, VHalf first) {
    const DD dd;
    const VD x = hn::PromoteTo(dd, value);
    const VD y = hn::PromoteTo(dd, decoded);
    const VD error = hn::Sub(x, y);
    const VD shifted = hn::Sub(x, hn::PromoteTo(dd, first));
    const VD magnitude = hn::Abs(error);
    sum_ = hn::Add(sum_, shifted);
    deviations_ = hn::MulAdd(shifted, shifted, deviations_);
    squares_ = hn::MulAdd(x, x, squares_);
    error_squares_ = hn::MulAdd(error, error, error_squares_);
    abs_error_ = hn::Add(abs_error_, magnitude);
    cross_ = hn::MulAdd(x, error, cross_);
    decoded_squares_ = hn::MulAdd(y, y, decoded_squares_);
    max_error_ = hn::Max(max_error_, magnitude);
  }

  VF first_;
  VD sum_, deviations_, squares_, error_squares_, abs_error_, cross_, decoded_squares_, max_error_;
  size_t count_ = 0;
  bool has_infinite_error_ = false;
};

template <DType kT>
HWY_NOINLINE void MeasureInWideLanes(const uint8_t* original, const uint8_t* decoded, size_t count, ErrorSums& sums) {
  const DF df;
  constexpr size_t kSize = DTypeSize(kT);
  constexpr auto kMagnitude = static_cast<Bits<kT>>(Bits<kT>(~Bits<kT>{0}) >> 1);
  const auto magnitude_of = [&](size_t i) {
    return static_cast<Bits<kT>>(LoadLE<Bits<kT>>(reinterpret_cast<const std::byte*>(original) + i * kSize) &
                                 kMagnitude);
  };
  size_t first = 0;  // that is finite
  while (first < count && magnitude_of(first) >= InfinityBits(kT)) ++first;
  if (first == count) return;
  WideLanes<kT> lanes(LoadAsF32(kT, original, first));
  for (size_t i = 0; i < count * kSize; i += hn::Lanes(df) * kSize) {
    lanes.Add(LoadF32<kT>(df, original + i), LoadF32<kT>(df, decoded + i));
  }
  lanes.AddTo(sums);
}

template <DType kT>
void MeasureAs(const uint8_t* original, const uint8_t* decoded, size_t count, ErrorSums& sums) {
  constexpr size_t kSize = DTypeSize(kT);
  // Runs that binary32 would lose too much of are left, as many together as follow each other: sums that cancel lose
  // something in each merge.
  size_t left = 0;
  const auto measure_left = [&](size_t end) HWY_ATTR {
    const size_t begin = (end - left) * kSize;
    if (left > 0) MeasureInWideLanes<kT>(original + begin, decoded + begin, left, sums);
    left = 0;
  };
  float shift = 0;  // which runs that follow each other are likely to need
  for (size_t at = 0; at < count; at += kRun) {
    const size_t n = std::min(kRun, count - at);
    const uint8_t* x = original + at * kSize;
    const uint8_t* y = decoded + at * kSize;
    const Bits<kT> max_bits = MaxMagnitude<kT>(x, y, n * kSize);
    const double max_abs = LoadAsF32(kT, &max_bits, 0);
    ErrorSums run_sums;
    if (MeasureShifted<kT>(x, y, n, max_abs, shift, run_sums) == Outcome::kMeasured) {
      measure_left(at);
      sums.Merge(run_sums);
    } else {
      left += n;
    }
  }
  measure_left(count);
}

}  // namespace

// MeasureErrors for a multiple of kMultiple values.
void MeasureVectors(DType dtype, const uint8_t* original, const uint8_t* decoded, size_t count, ErrorSums& sums) {
  VisitDType(dtype, [&](auto t) HWY_ATTR { MeasureAs<decltype(t)::value>(original, decoded, count, sums); });
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(MeasureVectors);

namespace {

// F16 holds every value of the F8 types.
void MeasureF8(DType dtype, const uint8_t* original, const uint8_t* decoded, size_t count, ErrorSums& sums) {
  constexpr size_t kRun = HWY_STATIC_DISPATCH(kRun);
  std::array<uint16_t, kRun> x, y;
  for (size_t begin = 0; begin < count; begin += kRun) {
    const size_t n = std::min(kRun, count - begin);
    WidenF8(dtype, original + begin, n, x.data());
    WidenF8(dtype, decoded + begin, n, y.data());
    MeasureErrors(DType::kF16, x.data(), y.data(), n, sums);
  }
}

}  // namespace

void MeasureErrors(DType dtype, const void* original, const void* decoded, size_t count, ErrorSums& sums) {
  const auto* x = static_cast<const uint8_t*>(original);
  const auto* y = static_cast<const uint8_t*>(decoded);
  if (IsF8(dtype)) return MeasureF8(dtype, x, y, count, sums);
  const size_t done = count - count % HWY_STATIC_DISPATCH(kMultiple);
  HWY_DYNAMIC_DISPATCH(MeasureVectors)(dtype, x, y, done, sums);
  const size_t bytes = done * DTypeSize(dtype);
  scalar::MeasureErrors(dtype, x + bytes, y + bytes, count - done, sums);
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
