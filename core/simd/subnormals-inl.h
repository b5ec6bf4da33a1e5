// Exact products and quotients of subnormal numbers by way of larger ones, for the target that is being compiled: on
// x86 each vector of a product or a quotient with a subnormal number takes ninety cycles or more.

#if defined(KVCOMPRESS_SIMD_SUBNORMALS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVCOMPRESS_SIMD_SUBNORMALS_INL_H_
#undef KVCOMPRESS_SIMD_SUBNORMALS_INL_H_
#else
#define KVCOMPRESS_SIMD_SUBNORMALS_INL_H_
#endif

#include <hwy/highway.h>

#include "core/simd/half-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// What numbers are multiplied by. Of those below kSmallScale, products and quotients with what codes are keep far from
// the ends of binary32 then.
constexpr float kEnlarging = 0x1p64f;
constexpr int kEnlargingExponent = 64;
constexpr float kSmallScale = 0x1p-60f;
// The smallest normal number and the smallest number at all, enlarged.
constexpr float kEnlargedMin = 0x1p-62f;
constexpr float kEnlargedDigit = 0x1p-85f;

// kEnlarging v, for magnitudes below 2^62, whether this thread computes with subnormal numbers or with 0 in their
// place.
template <class DF>
HWY_INLINE hn::Vec<DF> Enlarge(DF df, hn::Vec<DF> v) {
  // Of the exponents one is right for normal numbers; with one more, the power is to be taken off subnormal ones. Where
  // either is wrong, it gives the larger number.
  const hn::RebindToSigned<DF> di;
  const auto magnitude = hn::BitCast(di, hn::Abs(v));
  const auto normal = hn::BitCast(df, hn::Add(magnitude, hn::Set(di, kEnlargingExponent << 23)));
  const auto with_power = hn::BitCast(df, hn::Add(magnitude, hn::Set(di, (kEnlargingExponent + 1) << 23)));
  return hn::CopySignToAbs(hn::Min(normal, hn::Sub(with_power, hn::Set(df, kEnlargedMin))), v);
}

// v / kEnlarging, rounded to nearest even, for finite numbers.
template <class DF>
HWY_INLINE hn::Vec<DF> Reduce(DF df, hn::Vec<DF> v) {
  // The sum has the digits of subnormal numbers as its last ones. Where either is wrong, it gives the smaller bits.
  const hn::RebindToSigned<DF> di;
  const auto magnitude = hn::Abs(v);
  const auto normal = hn::Sub(hn::BitCast(di, magnitude), hn::Set(di, kEnlargingExponent << 23));
  const auto min = hn::Set(df, kEnlargedMin);
  const auto subnormal = hn::Sub(hn::BitCast(di, hn::Add(magnitude, min)), hn::BitCast(di, min));
  return hn::CopySignToAbs(hn::BitCast(df, hn::Max(normal, subnormal)), v);
}

// Where scales are small, without being 0.
HWY_INLINE hn::Mask<DF> AreSmall(VF scales) {
  const DF df;
  const auto is_positive = hn::Gt(hn::BitCast(DI(), scales), hn::Zero(DI()));  // a subnormal one may count as 0
  return hn::And(hn::RebindMask(df, is_positive), hn::Lt(scales, hn::Set(df, kSmallScale)));
}

}  // namespace
}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
