// Hadamard transforms in binary32, for the target that is being compiled.

#if defined(KVCOMPRESS_SIMD_HADAMARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVCOMPRESS_SIMD_HADAMARD_INL_H_
#undef KVCOMPRESS_SIMD_HADAMARD_INL_H_
#else
#define KVCOMPRESS_SIMD_HADAMARD_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>

#include "core/simd/half-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// +1 in lanes whose index has no bit kDistance, else -1.
template <size_t kDistance>
HWY_INLINE VF LaneSigns() {
  const DF df;
  const DU du;
  const auto has_bit = hn::And(hn::Iota(du, 0), hn::Set(du, kDistance));
  return hn::IfThenElse(hn::RebindMask(df, hn::Eq(has_bit, hn::Zero(du))), hn::Set(df, 1.0f), hn::Set(df, -1.0f));
}

// Sums and differences of lanes that are kDistance apart. The product by +-1 is exact, so that it may be fused.
template <size_t kDistance>
HWY_INLINE VF LaneStage(VF v) {
  const DF df;
  VF partner;
  if constexpr (kDistance == 1) {
    partner = hn::Reverse2(df, v);
  } else if constexpr (kDistance == 2) {
    partner = hn::Shuffle1032(v);
  } else if constexpr (kDistance == 4 && kLanes > 8) {
    partner = hn::SwapAdjacentBlocks(v);
  } else {
    static_assert(2 * kDistance == kLanes);
    partner = hn::ConcatLowerUpper(df, v, v);
  }
  return hn::MulAdd(v, LaneSigns<kDistance>(), partner);
}

// The first stages of a transform, within kCount vectors that follow one another.
template <size_t kCount>
HWY_INLINE void HadamardOfVectors(VF (&v)[kCount]) {
  for (VF& one : v) {
    one = LaneStage<2>(LaneStage<1>(one));
    if constexpr (kLanes > 4) one = LaneStage<4>(one);
    if constexpr (kLanes > 8) one = LaneStage<8>(one);
  }
  HWY_UNROLL(3)
  for (size_t half = 1; half < kCount; half *= 2) {
    for (size_t begin = 0; begin < kCount; begin += 2 * half) {
      for (size_t i = begin; i < begin + half; ++i) {
        const VF a = v[i];
        v[i] = hn::Add(a, v[i + half]);
        v[i + half] = hn::Sub(a, v[i + half]);
      }
    }
  }
}

template <size_t kCount>
HWY_INLINE void HadamardOfBlock(float* values) {
  const DF df;
  VF v[kCount];
  for (size_t i = 0; i < kCount; ++i) v[i] = hn::LoadU(df, values + i * kLanes);
  HadamardOfVectors(v);
  for (size_t i = 0; i < kCount; ++i) hn::StoreU(v[i], df, values + i * kLanes);
}

// The transform of `size` values, a power of two from 16 on; its stages are in the order of their distances.
HWY_INLINE void Hadamard(float* values, size_t size) {
  const DF df;
  constexpr size_t kBlock = 8 * kLanes;
  if (size == kLanes) return HadamardOfBlock<1>(values);
  if (size == 2 * kLanes) return HadamardOfBlock<2>(values);
  if (size == 4 * kLanes) return HadamardOfBlock<4>(values);
  for (size_t i = 0; i < size; i += kBlock) HadamardOfBlock<8>(values + i);
  for (size_t half = kBlock; half < size; half *= 2) {
    for (size_t begin = 0; begin < size; begin += 2 * half) {
      for (size_t i = begin; i < begin + half; i += kLanes) {
        const VF a = hn::LoadU(df, values + i);
        const VF b = hn::LoadU(df, values + i + half);
        hn::StoreU(hn::Add(a, b), df, values + i);
        hn::StoreU(hn::Sub(a, b), df, values + i + half);
      }
    }
  }
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
