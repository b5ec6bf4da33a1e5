#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/value_moments.cc"
#include "core/simd/value_moments.h"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "core/base/half.h"
#include "core/simd/half-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

using DD = hn::Repartition<double, DF>;
using VD = hn::Vec<DD>;

template <DType kT>
size_t AddVectors(const uint8_t* values, size_t count, Moments& moments) {
  const DF df;
  const DD dd;
  const hn::Half<DF> half;
  const VF most = hn::Set(df, MaxFinite(kT));
  const VF center = hn::Set(df, moments.center);
  const VD wide_center = hn::Set(dd, double{moments.center});
  VD sums[2] = {hn::Zero(dd), hn::Zero(dd)};
  VD squares[2] = {hn::Zero(dd), hn::Zero(dd)};
  size_t finite = 0;
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    PrefetchAhead<4096>(values + i * DTypeSize(kT), kLanes * DTypeSize(kT));
    const VF value = LoadF32<kT>(df, values + i * DTypeSize(kT));
    const auto is_finite = hn::Le(hn::Abs(value), most);
    finite += hn::CountTrue(df, is_finite);
    const VF x = hn::IfThenElse(is_finite, value, center);  // which adds nothing
    const VD lower = hn::Sub(hn::PromoteTo(dd, hn::LowerHalf(half, x)), wide_center);
    const VD upper = hn::Sub(hn::PromoteTo(dd, hn::UpperHalf(half, x)), wide_center);
    sums[0] = hn::Add(sums[0], lower);
    sums[1] = hn::Add(sums[1], upper);
    squares[0] = hn::MulAdd(lower, lower, squares[0]);
    squares[1] = hn::MulAdd(upper, upper, squares[1]);
  }
  moments.count += finite;
  moments.sum += hn::GetLane(hn::SumOfLanes(dd, hn::Add(sums[0], sums[1])));
  moments.squares += hn::GetLane(hn::SumOfLanes(dd, hn::Add(squares[0], squares[1])));
  return i;
}

template <DType kT>
size_t TakeVectors(const uint8_t* values, size_t count, float* finite, size_t& taken) {
  const DF df;
  const VF most = hn::Set(df, MaxFinite(kT));
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const VF value = LoadF32<kT>(df, values + i * DTypeSize(kT));
    taken += hn::CompressStore(value, hn::Le(hn::Abs(value), most), df, finite + taken);
  }
  return i;
}

}  // namespace

// Those of whole vectors; they return where these end.
size_t AddMomentVectors(DType dtype, const uint8_t* values, size_t count, Moments& moments) {
  return VisitDType(dtype, [&](auto t) HWY_ATTR { return AddVectors<decltype(t)::value>(values, count, moments); });
}
size_t TakeFiniteVectors(DType dtype, const uint8_t* values, size_t count, float* finite, size_t& taken) {
  return VisitDType(dtype,
                    [&](auto t) HWY_ATTR { return TakeVectors<decltype(t)::value>(values, count, finite, taken); });
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(AddMomentVectors);
HWY_EXPORT(TakeFiniteVectors);

namespace {

// Calls visit(dtype, values, count) for values of a dtype that kernels know.
template <typename Visit>
void ForEachRun(DType dtype, const std::byte* values, size_t count, Visit visit) {
  if (!IsF8(dtype)) return visit(dtype, reinterpret_cast<const uint8_t*>(values), count);
  std::array<uint8_t, 4096> wide;
  constexpr size_t kRun = wide.size() / 2;
  for (size_t begin = 0; begin < count; begin += kRun) {
    const size_t n = std::min(kRun, count - begin);
    WidenF8(dtype, values + begin, n, wide.data());
    visit(DType::kF16, wide.data(), n);
  }
}

}  // namespace

void AddMoments(DType dtype, const std::byte* values, size_t count, Moments& moments) {
  ForEachRun(dtype, values, count, [&](DType kernel_dtype, const uint8_t* from, size_t n) {
    for (size_t i = HWY_DYNAMIC_DISPATCH(AddMomentVectors)(kernel_dtype, from, n, moments); i < n; ++i) {
      const float x = LoadAsF32(kernel_dtype, from, i);
      if (!std::isfinite(x)) continue;
      const double deviation = double{x} - double{moments.center};
      ++moments.count;
      moments.sum += deviation;
      moments.squares += deviation * deviation;
    }
  });
}

size_t TakeFinite(DType dtype, const std::byte* values, size_t count, float* finite) {
  size_t taken = 0;
  ForEachRun(dtype, values, count, [&](DType kernel_dtype, const uint8_t* from, size_t n) {
    for (size_t i = HWY_DYNAMIC_DISPATCH(TakeFiniteVectors)(kernel_dtype, from, n, finite, taken); i < n; ++i) {
      const float x = LoadAsF32(kernel_dtype, from, i);
      if (std::isfinite(x)) finite[taken++] = x;
    }
  });
  return taken;
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
