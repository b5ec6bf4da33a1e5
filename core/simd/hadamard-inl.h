// Hadamard transforms in binary32 and in integers of 16 bits, for the target that is being compiled.

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

// ---- Integers

using D16 = hn::Repartition<int16_t, DF>;
using V16 = hn::Vec<D16>;
constexpr size_t kShorts = 2 * kLanes;

// Sums and differences of vectors that are `half` apart.
template <size_t kCount>
HWY_INLINE void ShortStage(V16 (&v)[kCount], size_t half) {
  HWY_UNROLL(16)
  for (size_t i = 0; i < kCount; ++i) {
    if ((i & half) != 0) continue;
    const V16 a = v[i];
    v[i] = hn::Add(a, v[i + half]);
    v[i + half] = hn::Sub(a, v[i + half]);
  }
}

// Calls mix(a, b) for the pairs of adjacent vectors.
template <size_t kCount, class Mix>
HWY_INLINE void MixPairs(V16 (&v)[kCount], Mix mix) {
  HWY_UNROLL(8)
  for (size_t i = 0; i < kCount; i += 2) mix(v[i], v[i + 1]);
}

// Of the bits of an index the lowest that tells vectors apart takes the place of one within 128 bits, and they move up:
// after four of them each is in its place.
HWY_INLINE void MixLanes(V16& a, V16& b) {
  const V16 lower = hn::InterleaveLower(D16(), a, b);
  b = hn::InterleaveUpper(D16(), a, b);
  a = lower;
}

#if KVC_TARGET_AVX512
// The same of the two bits that tell apart blocks of 128 bits; three of them are none.
HWY_INLINE void MixBlocks(V16& a, V16& b) {
  const V16 even{_mm512_shuffle_i64x2(a.raw, b.raw, _MM_SHUFFLE(2, 0, 2, 0))};
  b = V16{_mm512_shuffle_i64x2(a.raw, b.raw, _MM_SHUFFLE(3, 1, 3, 1))};
  a = even;
}
constexpr size_t kBlockBits = 2;
#elif HWY_TARGET == HWY_AVX2
HWY_INLINE void MixBlocks(V16& a, V16& b) {
  const V16 lower = hn::ConcatLowerLower(D16(), b, a);
  b = hn::ConcatUpperUpper(D16(), b, a);
  a = lower;
}
constexpr size_t kBlockBits = 1;
#else
HWY_INLINE void MixBlocks(V16&, V16&) {}
constexpr size_t kBlockBits = 0;
#endif

// The transform of kCount vectors, of which no sum leaves 16 bits.
template <size_t kCount>
HWY_INLINE void HadamardOfShorts(V16 (&v)[kCount]) {
  static_assert(kCount >= 2);
  for (size_t bit = 0; bit < 4; ++bit) {
    ShortStage(v, 1);
    MixPairs(v, MixLanes);
  }
  for (size_t bit = 0; bit < kBlockBits; ++bit) {
    MixPairs(v, MixBlocks);
    ShortStage(v, 1);
  }
  MixPairs(v, MixBlocks);
  for (size_t half = 2; half < kCount; half *= 2) ShortStage(v, half);
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
