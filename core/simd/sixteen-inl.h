// 16 elements of a tensor at once, for the target that is being compiled.

#if defined(KVCOMPRESS_SIMD_SIXTEEN_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVCOMPRESS_SIMD_SIXTEEN_INL_H_
#undef KVCOMPRESS_SIMD_SIXTEEN_INL_H_
#else
#define KVCOMPRESS_SIMD_SIXTEEN_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>

#include "core/simd/half-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// The 16 elements from `from` on, as vectors.
template <DType kT>
class Sixteen {
 public:
  HWY_INLINE explicit Sixteen(const uint8_t* from) : from_(from) {}
  HWY_INLINE VF operator[](size_t i) const { return LoadF32<kT>(DF(), from_ + i * kLanes * DTypeSize(kT)); }

 private:
  const uint8_t* from_;
};
#if KVC_EMULATES_F16
template <>
class Sixteen<DType::kF16> {
 public:
  HWY_INLINE explicit Sixteen(const uint8_t* from) {
    const hn::Repartition<int16_t, DF> d16;
    const auto first = LoadAt(d16, from), second = LoadAt(d16, from + 16);
    const auto magnitude = hn::Set(d16, 0x7fff);
    const auto least = hn::Min(hn::And(first, magnitude), hn::And(second, magnitude));
    if (HWY_LIKELY(hn::AllTrue(d16, hn::Gt(least, hn::Set(d16, 0x3ff))))) {
      Widen(first, v_[0], v_[1]);
      Widen(second, v_[2], v_[3]);
    } else {
      for (size_t i = 0; i < 4; ++i) v_[i] = LoadF32<DType::kF16>(DF(), from + 8 * i);
    }
  }
  HWY_INLINE VF operator[](size_t i) const { return v_[i]; }

 private:
  static_assert(kLanes == 4);

  // Of normal numbers binary32 has the same digits three bits further down, and an exponent that is 112 more: a third
  // of the steps of F32FromF16, as most are of 16 bits.
  template <class V>
  static HWY_INLINE void Widen(V v, VF& lower, VF& upper) {
    const hn::Repartition<int16_t, DF> d16;
    const auto sign_and_digits = hn::And(hn::ShiftRight<3>(v), hn::Set(d16, static_cast<int16_t>(0x8fff)));
    const auto high = hn::Add(sign_and_digits, hn::Set(d16, 112 << 7));
    const auto low = hn::ShiftLeft<13>(v);
    lower = hn::BitCast(DF(), hn::InterleaveLower(d16, low, high));
    upper = hn::BitCast(DF(), hn::InterleaveUpper(d16, low, high));
  }

  VF v_[4];
};
#endif

}  // namespace
}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
