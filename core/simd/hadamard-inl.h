// Hadamard transforms in binary32 and in integers of 16 bits, for the target that is being compiled.

#if defined(KVCOMPRESS_SIMD_HADAMARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVCOMPRESS_SIMD_HADAMARD_INL_H_
#undef KVCOMPRESS_SIMD_HADAMARD_INL_H_
#else
#define KVCOMPRESS_SIMD_HADAMARD_INL_H_
#endif

#include <hwy/highway.h>

#include <array>
#include <cstddef>

#include "core/simd/half-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// +1 in lanes whose index has no bit kDistance, else -1.
template <size_t kDistance>
alignas(64) inline constexpr std::array<float, 16> kLaneSigns = [] {
  std::array<float, 16> signs{};
  for (size_t i = 0; i < 16; ++i) signs[i] = (i & kDistance) == 0 ? 1.0f : -1.0f;
  return signs;
}();

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
  return hn::MulAdd(v, hn::Load(df, kLaneSigns<kDistance>.data()), partner);
}

// The first stages of transforms, within kVectors vectors that follow one another, of several of them together: within
// one, each stage waits for the one before.
template <size_t kVectors, size_t kCount>
HWY_INLINE void HadamardOfVectors(VF (&v)[kCount]) {
  for (VF& one : v) one = LaneStage<1>(one);
  for (VF& one : v) one = LaneStage<2>(one);
  if constexpr (kLanes > 4) {
    for (VF& one : v) one = LaneStage<4>(one);
  }
  if constexpr (kLanes > 8) {
    for (VF& one : v) one = LaneStage<8>(one);
  }
  HWY_UNROLL(3)
  for (size_t half = 1; half < kVectors; half *= 2) {
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
  HadamardOfVectors<kCount>(v);
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

// ---- Integers, of which no sum leaves 16 bits

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

// Of the bits of an index the one that tells the two vectors apart takes the place of one within 128 bits, and those
// move up: after four times each is in its place.
HWY_INLINE void MixLanes(V16& a, V16& b) {
  const V16 lower = hn::InterleaveLower(D16(), a, b);
  b = hn::InterleaveUpper(D16(), a, b);
  a = lower;
}

// The same with the bits that tell apart blocks of 128 bits.
#if KVC_TARGET_AVX512
constexpr size_t kBlockBits = 2;
HWY_INLINE void MixBlocks(V16& a, V16& b) {
  const __m512i even = _mm512_shuffle_i64x2(a.raw, b.raw, _MM_SHUFFLE(2, 0, 2, 0));
  b.raw = _mm512_shuffle_i64x2(a.raw, b.raw, _MM_SHUFFLE(3, 1, 3, 1));
  a.raw = even;
}
#elif HWY_TARGET == HWY_AVX2
constexpr size_t kBlockBits = 1;
HWY_INLINE void MixBlocks(V16& a, V16& b) {
  const V16 lower = hn::ConcatLowerLower(D16(), b, a);
  b = hn::ConcatUpperUpper(D16(), b, a);
  a = lower;
}
#else
constexpr size_t kBlockBits = 0;
HWY_INLINE void MixBlocks(V16&, V16&) {}
#endif

// The transforms of kVectors vectors each, of several rows together: within one, each stage waits for the one before.
// Where the bits of all indices are in another order, they are the same.
template <size_t kVectors, size_t kCount>
HWY_INLINE void HadamardOfShorts(V16 (&v)[kCount]) {
  static_assert(kVectors >= 2 && kCount % kVectors == 0);
  for (size_t bit = 0; bit < 4; ++bit) {
    ShortStage(v, 1);
    for (size_t i = 0; i < kCount; i += 2) MixLanes(v[i], v[i + 1]);
  }
  for (size_t bit = 0; bit < kBlockBits; ++bit) {
    for (size_t i = 0; i < kCount; i += 2) MixBlocks(v[i], v[i + 1]);
    ShortStage(v, 1);
  }
  for (size_t i = 0; i < kCount; i += 2) MixBlocks(v[i], v[i + 1]);
  for (size_t half = 2; half < kVectors; half *= 2) ShortStage(v, half);
}

// ---- Bytes with signs, of which no sum leaves 16 bits

using D8 = hn::Repartition<uint8_t, DF>;
using V8 = hn::Vec<D8>;

// Bytes in the order from which HadamardOfBytes leads to that of two vectors of numbers which ReorderDemote2To narrows.
HWY_INLINE V8 ToMixedOrder(V8 v) {
#if KVC_TARGET_AVX512
  v.raw = _mm512_permutex_epi64(v.raw, _MM_SHUFFLE(3, 1, 2, 0));
#endif
  HWY_ALIGN static constexpr uint8_t kOfBlocks[16] = {0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15};
  HWY_ALIGN static constexpr uint8_t kOfOneBlock[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  return hn::TableLookupBytes(v, hn::LoadDup128(D8(), kBlockBits > 0 ? kOfBlocks : kOfOneBlock));
}

// Sums and differences of neighbors.
HWY_INLINE void AddNeighbors(V8 bytes, V16& sums, V16& differences) {
#if KVC_TARGET_AVX512
  sums.raw = _mm512_maddubs_epi16(_mm512_set1_epi8(1), bytes.raw);
  const V16 twice_the_first{_mm512_maddubs_epi16(_mm512_set1_epi16(2), bytes.raw)};
#elif HWY_TARGET == HWY_AVX2
  sums.raw = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes.raw);
  const V16 twice_the_first{_mm256_maddubs_epi16(_mm256_set1_epi16(2), bytes.raw)};
#elif HWY_TARGET == HWY_SSE4
  sums.raw = _mm_maddubs_epi16(_mm_set1_epi8(1), bytes.raw);
  const V16 twice_the_first{_mm_maddubs_epi16(_mm_set1_epi16(2), bytes.raw)};
#else
  const V16 pairs = hn::BitCast(D16(), bytes);
  const V16 first = hn::ShiftRight<8>(hn::ShiftLeft<8>(pairs));
  const V16 twice_the_first = hn::Add(first, first);
  sums = hn::Add(first, hn::ShiftRight<8>(pairs));
#endif
  differences = hn::Sub(twice_the_first, sums);
}

// As HadamardOfShorts, of bytes in ToMixedOrder: its first stage widens them, and the others leave lanes in order.
template <size_t kVectors, size_t kCount>
HWY_INLINE void HadamardOfBytes(const V8 (&bytes)[kCount / 2], V16 (&v)[kCount]) {
  static_assert(kVectors >= 2 && kCount % kVectors == 0);
  HWY_UNROLL(8)
  for (size_t i = 0; i < kCount; i += 2) AddNeighbors(bytes[i / 2], v[i], v[i + 1]);
  for (size_t bit = 0; bit < 3; ++bit) {
    for (size_t i = 0; i < kCount; i += 2) MixLanes(v[i], v[i + 1]);
    ShortStage(v, 1);
  }
  for (size_t bit = 0; bit < kBlockBits; ++bit) {
    for (size_t i = 0; i < kCount; i += 2) MixBlocks(v[i], v[i + 1]);
    ShortStage(v, 1);
  }
  for (size_t half = 2; half < kVectors; half *= 2) ShortStage(v, half);
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
