// What vectors of lanes are coded with (channel_rans.h), for the target that is being compiled: those of rans-inl.h.

#if defined(KVCOMPRESS_SIMD_CHANNEL_RANS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVCOMPRESS_SIMD_CHANNEL_RANS_INL_H_
#undef KVCOMPRESS_SIMD_CHANNEL_RANS_INL_H_
#else
#define KVCOMPRESS_SIMD_CHANNEL_RANS_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "core/simd/channel_rans.h"
#include "core/simd/cpu_features.h"
#include "core/simd/half-inl.h"
#include "core/simd/rans-inl.h"

#if KVC_TARGET_RANS

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

constexpr size_t kVectors = kStripChannels / kLanes;

// Where the tables of kLanes channels are, in words from the first of all.
HWY_INLINE VI PlacesOf(const StripTables& tables, size_t channel) {
  constexpr auto kWords = static_cast<int32_t>(sizeof(ChannelTable) / sizeof(uint32_t));
  return hn::Mul(hn::LoadU(DI(), tables.index.data() + channel), hn::Set(DI(), kWords));
}

// How entries are looked up: by a gather, or lane by lane. Where they are waited for, the lanes of an index then leave
// its vector one by one, if that has 16 of them: vectors of fewer are too many for it.
enum class LookUps { kGather, kLanes, kAwaitedLanes };

// The entries of a table at `index` of each lane's own table, from `base` on.
template <LookUps kLookUps>
HWY_INLINE VI EntriesAt(const uint32_t* base, VI index) {
#if KVC_TARGET_AVX512
  if constexpr (kLookUps == LookUps::kGather) return Gather(base, index);
#endif
  HWY_ALIGN uint32_t at[kLanes];
  hn::Store(hn::BitCast(DU(), index), DU(), at);
  // Keeps GCC from taking the lanes out of the register, which is sooner done but more work than memory's.
  if constexpr (kLookUps == LookUps::kLanes || kLanes < 16) asm("" : "+m"(at));
  return LookUp([&](size_t lane) HWY_ATTR { return base[at[lane]]; });
}

#if KVC_TARGET_AVX512
// The first or, where `second` says so, the second one of the pairs of entries at `index`, from `base` on. Both are
// read, so that they do not wait for `second`. Smaller vectors have other work meanwhile.
HWY_INLINE VI EitherAt(const uint32_t* base, VI index, hn::Mask<DI> second) {
  HWY_ALIGN uint32_t at[kLanes];
  hn::Store(hn::BitCast(DU(), index), DU(), at);
  const auto two = [&](size_t lane) HWY_ATTR {
    const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(base + at[lane]));
    return _mm_loadh_pi(_mm_castsi128_ps(low), reinterpret_cast<const __m64*>(base + at[lane + 1]));
  };
  // Of each 128 bits of the result, the lower two lanes or the upper two.
  const auto eight = [&](size_t lane) HWY_ATTR { return _mm256_set_m128(two(lane + 4), two(lane)); };
  const auto all = [&](size_t lane) HWY_ATTR {
    return _mm512_castpd_ps(_mm512_insertf64x4(_mm512_castps_pd(_mm512_castps256_ps512(eight(lane))),
                                               _mm256_castps_pd(eight(lane + 8)), 1));
  };
  const __m512 a = all(0), b = all(2);
  const __m512 first = _mm512_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0));
  return VI{_mm512_castps_si512(_mm512_mask_shuffle_ps(first, second.raw, a, b, _MM_SHUFFLE(3, 1, 3, 1)))};
}
#endif

template <size_t kStateVectors>
struct LaneStates {
  VI lanes[kStateVectors];

  explicit HWY_INLINE LaneStates(const uint32_t* from) {
    Unrolled<kStateVectors>([&](auto v)
                                KVC_WITHIN { lanes[v] = hn::BitCast(DI(), hn::LoadU(DU(), from + v * kLanes)); });
  }
  HWY_INLINE void StoreTo(uint32_t* to) const {
    Unrolled<kStateVectors>([&](auto v) KVC_WITHIN { hn::StoreU(hn::BitCast(DU(), lanes[v]), DU(), to + v * kLanes); });
  }
  HWY_INLINE void Reverse() {
    Unrolled<kStateVectors>([&](auto v) KVC_WITHIN { lanes[v] = hn::Reverse(DI(), lanes[v]); });
  }
  // Lets the states of the other token of two be the first ones.
  HWY_INLINE void PassTurn() {
    if constexpr (kStateVectors > kVectors) {
      Unrolled<kVectors>([&](auto v) KVC_WITHIN { std::swap(lanes[v], lanes[v + kVectors]); });
    }
  }
};

// The low bits of kLanes channels: of each how many upper and how many lower ones.
struct LowBits {
  VI upper, lower;

  HWY_INLINE LowBits() : upper(hn::Zero(DI())), lower(hn::Zero(DI())) {}
  HWY_INLINE LowBits(const StripTables& tables, size_t channel) {
    const DI di;
    const VI bits = hn::LoadU(di, tables.low_bits.data() + channel);
    lower = hn::Min(bits, hn::Set(di, kLowBitsAtOnce));
    upper = hn::Sub(bits, lower);
  }
  HWY_INLINE LowBits Reversed() const {
    LowBits other;
    other.upper = hn::Reverse(DI(), upper);
    other.lower = hn::Reverse(DI(), lower);
    return other;
  }
};

// Whether any channel of a strip has some.
HWY_INLINE bool HasUpperBits(const LowBits* low) {
  VI most = low[0].upper;
  Unrolled<kVectors>([&](auto v) KVC_WITHIN { most = hn::Max(most, low[v].upper); });
  return !hn::AllFalse(DI(), hn::Gt(most, hn::Zero(DI())));
}

// Vectors of channels that the states take at once: a token has one group of them or two.
constexpr size_t GroupVectors(size_t state_vectors) { return HWY_MIN(state_vectors, kVectors); }

// Calls `body` with the number of vectors that so many lanes take, as a constant.
template <class Body>
HWY_INLINE auto WithStateVectors(size_t lanes, Body body) {
  if (lanes == kMinVectorLanes) return body(std::integral_constant<size_t, kMinVectorLanes / kLanes>());
  return lanes == kStripChannels ? body(std::integral_constant<size_t, kVectors>())
                                 : body(std::integral_constant<size_t, 2 * kVectors>());
}

// Calls `body` with how entries are looked up, as a constant.
template <LookUps kElse, class Body>
HWY_INLINE auto WithLookUps(Body body) {
#if KVC_TARGET_AVX512
  if (GathersWell()) return body(std::integral_constant<LookUps, LookUps::kGather>());
#endif
  return body(std::integral_constant<LookUps, kElse>());
}

}  // namespace
}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVC_TARGET_RANS

#endif  // per-target include guard
