// Sums over the lanes of vectors, for the target that is being compiled.

#if defined(KVCOMPRESS_SIMD_ROW_SUMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVCOMPRESS_SIMD_ROW_SUMS_INL_H_
#undef KVCOMPRESS_SIMD_ROW_SUMS_INL_H_
#else
#define KVCOMPRESS_SIMD_ROW_SUMS_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>

#include "core/simd/hadamard-inl.h"
#include "core/simd/half-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// So many vectors at once: of one alone, each addition would wait for the one before it.
constexpr size_t kRows = 16;

// One vector of sums in 16 lanes: those 8 lanes apart, then 4 apart, as far as they are in more than one.
HWY_INLINE VF AddVectors(const VF (&sums)[16 / kLanes]) {
  if constexpr (kLanes == 16) return sums[0];
  if constexpr (kLanes == 8) return hn::Add(sums[0], sums[16 / kLanes - 1]);
  if constexpr (kLanes == 4) return hn::Add(hn::Add(sums[0], sums[2]), hn::Add(sums[1], sums[3]));
}

// Where the vector of a row lies, so that all sums come out in order.
constexpr size_t SlotOf(size_t row) {
  const size_t lane = row % kLanes;
  return row - lane + lane % 4 * (kLanes / 4) + lane / 4;
}

// Makes one vector of each two, where a lane of the result is the sum of two lanes of one of them.
template <class V, class Mix>
HWY_INLINE void HalveRows(V* v, size_t& count, Mix mix) {
  count /= 2;
  for (size_t i = 0; i < count; ++i) v[i] = mix(v[2 * i], v[2 * i + 1]);
}

// The sums over lanes that are 8, then 4, 2 and 1 apart, of the vectors in slots.
template <class D, class T = hn::TFromD<D>>
HWY_INLINE void SumRows(D d, const T* slots, T* sums) {
  using V = hn::Vec<D>;
  V v[kRows];
  for (size_t i = 0; i < kRows; ++i) v[i] = hn::Load(d, slots + i * kLanes);
  size_t count = kRows;
#if KVC_TARGET_AVX512
  HalveRows(v, count,
            [&](V a, V b) HWY_ATTR { return hn::Add(hn::ConcatLowerLower(d, b, a), hn::ConcatUpperUpper(d, b, a)); });
  HalveRows(v, count, [&](V a, V b) HWY_ATTR {
    V16 even = hn::BitCast(D16(), a), odd = hn::BitCast(D16(), b);
    MixBlocks(even, odd);
    return hn::Add(hn::BitCast(d, even), hn::BitCast(d, odd));
  });
#elif HWY_TARGET == HWY_AVX2
  HalveRows(v, count,
            [&](V a, V b) HWY_ATTR { return hn::Add(hn::ConcatLowerLower(d, b, a), hn::ConcatUpperUpper(d, b, a)); });
#endif
  HalveRows(v, count,
            [&](V a, V b) HWY_ATTR { return hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b)); });
  const hn::Repartition<int64_t, D> d64;
  HalveRows(v, count, [&](V a, V b) HWY_ATTR {
    const auto wide_a = hn::BitCast(d64, a), wide_b = hn::BitCast(d64, b);
    return hn::Add(hn::BitCast(d, hn::InterleaveLower(d64, wide_a, wide_b)),
                   hn::BitCast(d, hn::InterleaveUpper(d64, wide_a, wide_b)));
  });
  for (size_t i = 0; i < count; ++i) hn::Store(v[i], d, sums + i * kLanes);
}

}  // namespace
}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
