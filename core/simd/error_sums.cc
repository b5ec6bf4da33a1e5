#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/error_sums.cc"
#include "core/simd/error_sums.h"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>

#include "core/base/half.h"
#include "core/simd/half-inl.h"
#include "core/simd/sums-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// Values are looked at in runs of this many: first at their magnitudes, then, in the cache, at the errors.
constexpr size_t kRun = 1024;
constexpr size_t kPrefetchBytes = 4096;

// The bits of the largest magnitude of a run of both arrays.
template <DType kT>
HWY_INLINE Bits<kT> MaxMagnitude(const uint8_t* a, const uint8_t* b) {
  const hn::ScalableTag<Bits<kT>> d;
  const auto mask = hn::Set(d, static_cast<Bits<kT>>(Bits<kT>(~Bits<kT>{0}) >> 1));
  const size_t step = hn::Lanes(d) * sizeof(Bits<kT>);
  auto max_a = hn::Zero(d);
  auto max_b = hn::Zero(d);
  for (size_t i = 0; i < kRun * sizeof(Bits<kT>); i += step) {
    max_a = hn::Max(max_a, hn::And(LoadAt(d, a + i), mask));
    max_b = hn::Max(max_b, hn::And(LoadAt(d, b + i), mask));
  }
  return hn::GetLane(hn::MaxOfLanes(d, hn::Max(max_a, max_b)));
}

// The sums of a run whose values are all finite and no larger than kLaneMax.
template <DType kT>
HWY_INLINE ErrorSums MeasureRun(const uint8_t* original, const uint8_t* decoded) {
  const DF df;
  constexpr size_t kStep = hn::MaxLanes(DF()) * DTypeSize(kT);
  LaneSums lanes;
  WideSums wide;
  size_t i = 0;
  while (i < kRun * DTypeSize(kT)) {
    for (size_t k = 0; k < LaneSums::kFlushAfter; ++k, i += kStep) {
      PrefetchAhead<kPrefetchBytes>(original + i, kStep);
      PrefetchAhead<kPrefetchBytes>(decoded + i, kStep);
      const VF x = LoadF32<kT>(df, original + i);
      lanes.Add(x, hn::Sub(x, LoadF32<kT>(df, decoded + i)));
    }
    wide.Flush(lanes);
  }
  return wide.Totals(kRun, lanes.max_error);
}

// Whether the squares of the decoded values, which are a difference of these sums, are large enough to be left by it.
bool DecodedSquaresFollow(const ErrorSums& sums) {
  const double decoded_squares = sums.sum_squares - 2 * sums.sum_cross + sums.sum_error_squares;
  return decoded_squares >= sums.sum_squares / 16;
}

template <DType kT>
void MeasureAs(const uint8_t* original, const uint8_t* decoded, size_t runs, ErrorSums& sums) {
  constexpr size_t kBytes = kRun * DTypeSize(kT);
  // Runs that lanes would lose too much of are left for the scalar code, as many together as follow each other: sums
  // that cancel lose something in each merge.
  size_t left = 0;
  const auto measure_left = [&](size_t end) {
    const size_t begin = (end - left) * kBytes;
    if (left > 0) scalar::MeasureErrors(kT, original + begin, decoded + begin, left * kRun, sums);
    left = 0;
  };
  for (size_t run = 0; run < runs; ++run) {
    const uint8_t* x = original + run * kBytes;
    const uint8_t* y = decoded + run * kBytes;
    const Bits<kT> max_bits = MaxMagnitude<kT>(x, y);
    const double max_abs = LoadAsF32(kT, &max_bits, 0);
    if (SafeInLanes(max_abs)) {
      const ErrorSums run_sums = MeasureRun<kT>(x, y);
      if (SafeInLanes(run_sums.max_abs_error) && DecodedSquaresFollow(run_sums) && DeviationsFollow(run_sums)) {
        measure_left(run);
        sums.Merge(run_sums);
        continue;
      }
    }
    ++left;
  }
  measure_left(runs);
}

}  // namespace

// MeasureErrors for `runs` runs of kRun values.
void MeasureRuns(DType dtype, const uint8_t* original, const uint8_t* decoded, size_t runs, ErrorSums& sums) {
  VisitDType(dtype, [&](auto t) HWY_ATTR { MeasureAs<decltype(t)::value>(original, decoded, runs, sums); });
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(MeasureRuns);

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
  const size_t runs = count / HWY_STATIC_DISPATCH(kRun);
  const size_t done = runs * HWY_STATIC_DISPATCH(kRun);
  HWY_DYNAMIC_DISPATCH(MeasureRuns)(dtype, x, y, runs, sums);
  const size_t bytes = done * DTypeSize(dtype);
  scalar::MeasureErrors(dtype, x + bytes, y + bytes, count - done, sums);
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
