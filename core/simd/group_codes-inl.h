// Codes of groups of values, for the target that is being compiled.

#if defined(KVCOMPRESS_SIMD_GROUP_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVCOMPRESS_SIMD_GROUP_CODES_INL_H_
#undef KVCOMPRESS_SIMD_GROUP_CODES_INL_H_
#else
#define KVCOMPRESS_SIMD_GROUP_CODES_INL_H_
#endif

#include <hwy/highway.h>

#include "core/simd/half-inl.h"
#include "core/simd/scales-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// Codes as whole numbers, and as integers of which the low 8 bits count.
struct Codes {
  VF number;
  VU bits;
};

// round(x / scale), half away from zero, for a group that is not unusual.
//
// F16 and BF16: x r + 1.5 2^23 with r = (1 + 2^-21) / scale leaves the nearest integer in the low bits of the sum.
// That is the same code as the definition's. Let x = X 2^i and scale = S 2^j with integers X < 2^11, S < 2^11, and
// e = i - j. If the quotient is no tie, its distance from a tie k + 1/2 is |X 2^(e+1) - (2k+1) S| / 2S, where the
// numerator is a positive multiple of min(1, 2^(e+1)): so the distance is at least 1 / 2S > 2^-12, or, when e < -1, at
// least 2^e / S = quotient / X, which is above 2^-13 for the quotients from 1/4 that alone can round to more than 0.
// The product x r is off the quotient by a relative 2^-21 +- 2^-23 (two roundings of 2^-24 each): it turns a tie up,
// and as no quotient exceeds 2^7 it moves others by less than 2^-13. Rounding the quotient to binary32 first, as the
// definition does, moves it by a relative 2^-24 and so changes neither.
//
// F32: the quotient itself, plus the largest number below 1/2, truncated; 1/2 would round 0.5 - 2^-25 up.
template <DType kT>
HWY_INLINE Codes Round(VF x, VF divisor) {
  const DF df;
  const DI di;
  const DU du;
  if constexpr (kDividesExactly<kT>) {
    const VF quotient = hn::Div(x, divisor);
    const auto whole = hn::ConvertTo(di, hn::Add(quotient, hn::CopySignToAbs(hn::Set(df, 0x1.fffffep-2f), quotient)));
    return {hn::ConvertTo(df, whole), hn::BitCast(du, whole)};
  } else {
    const VF magic = hn::Set(df, 0x1.8p23f);
    const VF sum = hn::MulAdd(x, divisor, magic);
    return {hn::Sub(sum, magic), hn::BitCast(du, sum)};
  }
}

// The same for a group that is unusual by its small scale alone, of which no quotient is beyond qmax + 1/2: of F16 and
// BF16, whose reciprocals are then far from the ends of binary32.
template <DType kT>
HWY_INLINE Codes RoundSmall(VF x, VF divisor, VF qmax) {
  static_assert(!kDividesExactly<kT>);
  const DF df;
  const VF magic = hn::Set(df, 0x1.8p23f);
  const VF sum = hn::Min(hn::MulAdd(x, divisor, magic), hn::Add(magic, qmax));
  return {hn::Sub(sum, magic), hn::BitCast(DU(), sum)};
}

// The same by the definition, for any group.
HWY_INLINE Codes RoundAndClamp(VF x, VF scale, VF qmax) {
  const DF df;
  const VF quotient = hn::Div(x, scale);
  const VF rounded = hn::Trunc(hn::Add(quotient, hn::CopySignToAbs(hn::Set(df, 0x1.fffffep-2f), quotient)));
  const VF number = hn::Max(hn::Min(rounded, qmax), hn::Sub(hn::Neg(qmax), hn::Set(df, 1.0f)));
  return {number, hn::BitCast(DU(), hn::ConvertTo(DI(), number))};
}

// Codes to the values that Dequantize gives for them.
template <DType kT, bool kNibbles>
class Decoder {
 public:
  HWY_INLINE explicit Decoder(float scale) : scale_(hn::Set(DF(), scale)) {}
  HWY_INLINE VF operator()(const Codes& codes) const { return RoundTo<kT>(DF(), hn::Mul(codes.number, scale_)); }

 private:
  VF scale_;
};

#if KVC_TARGET_AVX512
// A table of all 16 values, of which the permutation takes the low 4 bits as the index.
template <DType kT>
class Decoder<kT, true> {
 public:
  HWY_INLINE Decoder() = default;
  HWY_INLINE explicit Decoder(float scale) {
    const DF df;
    const VF codes{_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1)};
    table_ = RoundTo<kT>(df, hn::Mul(codes, hn::Set(df, scale)));
  }
  HWY_INLINE VF operator()(const Codes& codes) const { return VF{_mm512_permutexvar_ps(codes.bits.raw, table_.raw)}; }

 private:
  VF table_;
};
#endif

}  // namespace
}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
