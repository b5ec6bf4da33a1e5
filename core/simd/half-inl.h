// Elements of a tensor as vectors of float, for the target that is being compiled.

#if defined(KVCOMPRESS_SIMD_HALF_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVCOMPRESS_SIMD_HALF_INL_H_
#undef KVCOMPRESS_SIMD_HALF_INL_H_
#else
#define KVCOMPRESS_SIMD_HALF_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>

#include "core/base/dtype.h"

#undef KVC_TARGET_AVX512
#define KVC_TARGET_AVX512 (HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL)
// Of functions with AVX512-VBMI and AVX512-VBMI2, which that target does not promise (PermutesBytes); with all that it
// does promise, for what they inline.
#undef KVC_VBMI
#define KVC_VBMI __attribute__((target(HWY_TARGET_STR ",avx512vbmi,avx512vbmi2")))
// Whether there are no instructions for binary16.
#undef KVC_EMULATES_F16
#define KVC_EMULATES_F16 (HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_SSSE3 || HWY_TARGET == HWY_EMU128)

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <DType kT>
using Bits = DTypeBits<kT>;

// Loads and stores at any address: bytes, so that no pointer is ever misaligned for its type.
template <class D>
HWY_INLINE hn::Vec<D> LoadAt(D d, const uint8_t* from) {
  return hn::BitCast(d, hn::LoadU(hn::Repartition<uint8_t, D>(), from));
}
template <class D>
HWY_INLINE void StoreAt(hn::Vec<D> v, D d, uint8_t* to) {
  const hn::Repartition<uint8_t, D> bytes;
  (void)d;
  hn::StoreU(hn::BitCast(bytes, v), bytes, to);
}

constexpr size_t kCacheLine = 64;

// Fetches the `bytes` bytes that begin kDistance bytes after `at`; beyond the end of an array that does nothing.
template <size_t kDistance>
HWY_INLINE void PrefetchAhead(const uint8_t* at, size_t bytes) {
  for (size_t line = 0; line < bytes; line += kCacheLine) {
    hwy::Prefetch(reinterpret_cast<const uint8_t*>(reinterpret_cast<uintptr_t>(at) + kDistance + line));
  }
}

// Fetches the line that begins or lies kDistance bytes after `at`, which is about to be written to.
template <size_t kDistance>
HWY_INLINE void PrefetchForWriting(const uint8_t* at) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(at) + kDistance), 1);
}

// binary32 to binary16, to nearest even; NaN stays NaN.
template <class DF, class DU16 = hn::Rebind<uint16_t, DF>>
HWY_INLINE hn::Vec<DU16> F16FromF32(DF df, hn::Vec<DF> v) {
  const DU16 du16;
#if KVC_EMULATES_F16
  // Highway's emulation truncates. Beside the rounder the last digit of binary32 is that of binary16, of subnormal
  // numbers, too: what the sum has beyond it is the mantissa, whose first bit counts as one more in the exponent.
  const hn::RebindToSigned<DF> di;
  const auto sign = hn::ShiftRight<16>(hn::BitCast(hn::RebindToUnsigned<DF>(), hn::And(v, hn::Set(df, -0.0f))));
  const auto magnitude = hn::Min(hn::Abs(v), hn::Set(df, 0x1p16f));
  const auto exponent_bits = hn::BitCast(df, hn::Set(di, 0x7f800000));
  const auto power = hn::BitCast(di, hn::Max(hn::And(magnitude, exponent_bits), hn::Set(df, 0x1p-14f)));
  const auto rounder = hn::Add(power, hn::Set(di, 13 << 23));
  const auto mantissa = hn::Sub(hn::BitCast(di, hn::Add(magnitude, hn::BitCast(df, rounder))), rounder);
  auto half = hn::Add(mantissa, hn::Sub(hn::ShiftRight<13>(power), hn::Set(di, 113 << 10)));
  const auto is_nan = hn::Ne(v, v);
  if (HWY_UNLIKELY(!hn::AllFalse(df, is_nan))) {
    const auto payload = hn::And(hn::ShiftRight<13>(hn::BitCast(di, v)), hn::Set(di, 0x3ff));
    half = hn::IfThenElse(hn::RebindMask(di, is_nan), hn::Or(payload, hn::Set(di, 0x7e00)), half);
  }
  return hn::DemoteTo(du16, hn::Or(half, hn::BitCast(di, sign)));
#else
  (void)df;
  return hn::BitCast(du16, hn::DemoteTo(hn::Rebind<hwy::float16_t, DF>(), v));
#endif
}

// binary16 to binary32. Infinities and NaN become some number of 65536 and more on targets that emulate.
template <class DF>
HWY_INLINE hn::Vec<DF> F32FromF16(DF df, hn::Vec<hn::Rebind<uint16_t, DF>> v) {
#if KVC_EMULATES_F16
  // Half of the steps of Highway's. Of the exponents one is right for normal numbers. With one more, 2^-14 is to be
  // taken off subnormal ones. Where either is wrong, it gives the larger number.
  const hn::RebindToSigned<DF> di;
  const auto wide = hn::PromoteTo(di, hn::BitCast(hn::Rebind<int16_t, DF>(), v));
  const auto sign = hn::And(wide, hn::Set(di, hwy::LimitsMin<int32_t>()));
  const auto magnitude = hn::And(hn::ShiftLeft<13>(wide), hn::Set(di, 0x0fffe000));
  const auto normal = hn::BitCast(df, hn::Add(magnitude, hn::Set(di, 112 << 23)));
  const auto with_power = hn::BitCast(df, hn::Add(magnitude, hn::Set(di, 113 << 23)));
  const auto subnormal = hn::Sub(with_power, hn::Set(df, 0x1p-14f));
  return hn::Or(hn::Min(normal, subnormal), hn::BitCast(df, sign));
#else
  return hn::PromoteTo(df, hn::BitCast(hn::Rebind<hwy::float16_t, DF>(), v));
#endif
}

// The bits of a float rounded to bfloat16, in the upper halves; the lower halves are rubbish. Not for NaN with a
// payload in the low bits, which no kernel makes.
template <class DF, class DU = hn::RebindToUnsigned<DF>>
HWY_INLINE hn::Vec<DU> RoundToUpperHalf(DF, hn::Vec<DF> v) {
  const DU du;
  const auto bits = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  return hn::Add(hn::Add(bits, hn::Set(du, 0x7fff)), odd);
}

// Elements of kT, as their bits.
template <DType kT, class DF>
HWY_INLINE hn::Vec<DF> F32FromBits(DF df, hn::Vec<hn::Rebind<Bits<kT>, DF>> bits) {
  if constexpr (kT == DType::kF32) {
    return hn::BitCast(df, bits);
  } else if constexpr (kT == DType::kF16) {
    return F32FromF16(df, bits);
  } else {
    static_assert(kT == DType::kBF16);
    const hn::RebindToUnsigned<DF> du;
    return hn::BitCast(df, hn::ShiftLeft<16>(hn::PromoteTo(du, bits)));
  }
}

template <DType kT, class DF>
HWY_INLINE hn::Vec<DF> LoadF32(DF df, const uint8_t* from) {
  return F32FromBits<kT>(df, LoadAt(hn::Rebind<Bits<kT>, DF>(), from));
}

// `v` as elements of kT, which has 16 bits.
template <DType kT, class DF, class DU16 = hn::Rebind<uint16_t, DF>>
HWY_INLINE hn::Vec<DU16> Narrow(DF df, hn::Vec<DF> v) {
  if constexpr (kT == DType::kF16) {
    return F16FromF32(df, v);
  } else {
    static_assert(kT == DType::kBF16);
    const auto upper = hn::ShiftRight<16>(RoundToUpperHalf(df, v));
    return hn::DemoteTo(DU16(), hn::BitCast(hn::RebindToSigned<DF>(), upper));
  }
}

template <DType kT, class DF>
HWY_INLINE void StoreF32(DF df, hn::Vec<DF> v, uint8_t* to) {
  if constexpr (kT == DType::kF32) {
    StoreAt(v, df, to);
  } else {
    StoreAt(Narrow<kT>(df, v), hn::Rebind<uint16_t, DF>(), to);
  }
}

// `v` limited to the finite range of kT, and rounded.
template <DType kT, class DF>
HWY_INLINE void StoreLimited(DF df, hn::Vec<DF> v, uint8_t* to) {
  const auto most = hn::Set(df, MaxFinite(kT));
  StoreF32<kT>(df, hn::Max(hn::Min(v, most), hn::Neg(most)), to);
}

// `v`, finite, as an element of type kT can hold it.
template <DType kT, class DF>
HWY_INLINE hn::Vec<DF> RoundTo(DF df, hn::Vec<DF> v) {
  if constexpr (kT == DType::kF32) {
    return v;
  } else if constexpr (kT == DType::kF16) {
#if KVC_EMULATES_F16
    // As F16FromF32 does it, but for -0, of which it makes 0.
    const auto power = hn::And(v, hn::BitCast(df, hn::Set(hn::RebindToSigned<DF>(), 0x7f800000)));
    const auto rounder = hn::Mul(hn::Max(power, hn::Set(df, 0x1p-14f)), hn::Set(df, 0x1.8p13f));
    return hn::Sub(hn::Add(v, rounder), rounder);
#else
    return F32FromF16(df, F16FromF32(df, v));
#endif
  } else {
    static_assert(kT == DType::kBF16);
    const hn::RebindToUnsigned<DF> du;
    return hn::BitCast(df, hn::And(RoundToUpperHalf(df, v), hn::Set(du, 0xffff0000u)));
  }
}

// What most kernels compute with: whole vectors of 32-bit lanes.
using DF = hn::ScalableTag<float>;
using DI = hn::RebindToSigned<DF>;
using DU = hn::RebindToUnsigned<DF>;
using VF = hn::Vec<DF>;
using VU = hn::Vec<DU>;
constexpr size_t kLanes = hn::MaxLanes(DF());

// Calls visit(i) for each vector of `count` values; the last one overlaps the one before it where it would not fit.
// Only for what may be done twice, and count >= kLanes.
template <class Visit>
HWY_INLINE void ForEachVector(size_t count, Visit visit) {
  for (size_t i = 0; i < count; i += kLanes) visit(HWY_MIN(i, count - kLanes));
}

// The nearest integers, ties to even; any for what has none of 32 bits.
HWY_INLINE hn::Vec<DI> Nearest(VF v) {
#if KVC_TARGET_AVX512
  return hn::Vec<DI>{_mm512_cvtps_epi32(v.raw)};
#elif HWY_TARGET == HWY_AVX2
  return hn::Vec<DI>{_mm256_cvtps_epi32(v.raw)};
#elif HWY_ARCH_X86
  return hn::Vec<DI>{_mm_cvtps_epi32(v.raw)};
#else
  return hn::NearestInt(v);
#endif
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
