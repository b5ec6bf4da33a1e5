#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/key_counts.cc"
#include "core/simd/key_counts.h"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "core/simd/cpu_features.h"
#include "core/simd/half-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// Keys as signed integers, which every target compares.
template <KeyOrder kOrder, typename Bits>
constexpr std::make_signed_t<Bits> SignedKey(uint32_t key) {
  return static_cast<std::make_signed_t<Bits>>(kOrder == KeyOrder::kMagnitude ? key : key ^ kSignBit<Bits>);
}

template <KeyOrder kOrder, class D, class V = hn::Vec<D>>
HWY_INLINE V SignedKeysOf(D d, V bits) {
  using T = hn::TFromD<D>;
  const V magnitude = hn::Set(d, hwy::LimitsMax<T>());
  if constexpr (kOrder == KeyOrder::kMagnitude) return hn::And(bits, magnitude);
  return hn::Xor(bits, hn::And(hn::BroadcastSignBit(bits), magnitude));
}

// The lanes of a mask as bits.
template <class D>
HWY_INLINE uint64_t BitsOf(D d, hn::Mask<D> mask) {
  HWY_ALIGN uint8_t bytes[8] = {};
  hn::StoreMaskBits(d, mask, bytes);
  uint64_t bits;
  std::memcpy(&bits, bytes, sizeof(bits));
  return bits;
}

template <KeyOrder kOrder, typename T>
size_t CountVectors(const std::byte* values, size_t count, KeyCounts& counts) {
  const hn::ScalableTag<std::make_signed_t<T>> d;
  const size_t lanes = hn::Lanes(d);
  const auto* const bytes = reinterpret_cast<const uint8_t*>(values);
  const auto lower = hn::Set(d, SignedKey<kOrder, T>(counts.lower));
  const auto upper = hn::Set(d, SignedKey<kOrder, T>(counts.upper));
  size_t below = 0, at_lower = 0, at_upper = 0;
  uint64_t* const buckets = counts.between.data();
  const uint32_t first = counts.lower;
  const int shift = counts.shift;
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto keys = SignedKeysOf<kOrder>(d, LoadAt(d, bytes + i * sizeof(T)));
    const auto is_below = hn::Lt(keys, lower);
    const auto is_outside = hn::Or(is_below, hn::Gt(keys, upper));
    below += hn::CountTrue(d, is_below);
    if (HWY_LIKELY(hn::AllTrue(d, is_outside))) continue;
    const auto is_lower = hn::Eq(keys, lower);
    const auto is_upper = hn::Eq(keys, upper);
    at_lower += hn::CountTrue(d, is_lower);
    at_upper += hn::CountTrue(d, is_upper);
    const auto is_between = hn::Not(hn::Or(is_outside, hn::Or(is_lower, is_upper)));
    for (uint64_t between = BitsOf(d, is_between); between != 0; between &= between - 1) {
      const size_t at = i + static_cast<size_t>(std::countr_zero(between));
      const uint32_t key = KeyOf(kOrder, LoadLE<T>(values + at * sizeof(T)));
      ++buckets[(key - first) >> shift];
    }
  }
  counts.below += below;
  counts.at_lower += at_lower;
  if (counts.lower < counts.upper) counts.at_upper += at_upper;
  return i;
}

#if KVC_TARGET_AVX512
// The same for 16-bit keys, of which no branch depends on where they lie: those between the ends are moved together
// first, which takes AVX512-VBMI2, and this target does not promise that.
template <KeyOrder kOrder>
KVC_VBMI size_t CountWords(const std::byte* values, size_t count, KeyCounts& counts) {
  const hn::ScalableTag<int16_t> d;
  constexpr size_t kBatch = 512;
  constexpr size_t kWords = hn::MaxLanes(hn::ScalableTag<int16_t>());
  alignas(64) uint16_t batch[kBatch + kWords];
  const auto* const bytes = reinterpret_cast<const uint8_t*>(values);
  const auto lower = hn::Set(d, SignedKey<kOrder, uint16_t>(counts.lower));
  const auto upper = hn::Set(d, SignedKey<kOrder, uint16_t>(counts.upper));
  constexpr uint32_t kToKey = kOrder == KeyOrder::kMagnitude ? 0 : kSignBit<uint16_t>;
  size_t below = 0, at_lower = 0, at_upper = 0, batched = 0;
  const auto empty_batch = [&] {
    for (size_t j = 0; j < batched; ++j) {
      ++counts.between[((batch[j] ^ kToKey) - counts.lower) >> counts.shift];
    }
    batched = 0;
  };
  size_t i = 0;
  for (; i + kWords <= count; i += kWords) {
    const auto keys = SignedKeysOf<kOrder>(d, LoadAt(d, bytes + i * sizeof(uint16_t)));
    const __mmask32 is_below = hn::Lt(keys, lower).raw;
    const __mmask32 is_above = hn::Gt(keys, upper).raw;
    const __mmask32 is_lower = hn::Eq(keys, lower).raw;
    const __mmask32 is_upper = hn::Eq(keys, upper).raw;
    const auto is_between = static_cast<__mmask32>(~(is_below | is_above | is_lower | is_upper));
    below += static_cast<size_t>(std::popcount(is_below));
    at_lower += static_cast<size_t>(std::popcount(is_lower));
    at_upper += static_cast<size_t>(std::popcount(is_upper));
    _mm512_storeu_si512(batch + batched, _mm512_maskz_compress_epi16(is_between, keys.raw));
    batched += static_cast<size_t>(std::popcount(is_between));
    if (HWY_UNLIKELY(batched >= kBatch)) empty_batch();
  }
  empty_batch();
  counts.below += below;
  counts.at_lower += at_lower;
  if (counts.lower < counts.upper) counts.at_upper += at_upper;
  return i;
}
#endif

}  // namespace

// CountKeys for the whole vectors; returns where they end.
size_t CountKeyVectors(KeyOrder order, DType dtype, const std::byte* values, size_t count, KeyCounts& counts) {
  return VisitBits(dtype, [&](auto zero) HWY_ATTR {
    using T = decltype(zero);
#if KVC_TARGET_AVX512
    if constexpr (sizeof(T) == sizeof(uint16_t)) {
      if (PermutesBytes()) {
        return order == KeyOrder::kMagnitude ? CountWords<KeyOrder::kMagnitude>(values, count, counts)
                                             : CountWords<KeyOrder::kValue>(values, count, counts);
      }
    }
#endif
    return order == KeyOrder::kMagnitude ? CountVectors<KeyOrder::kMagnitude, T>(values, count, counts)
                                         : CountVectors<KeyOrder::kValue, T>(values, count, counts);
  });
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(CountKeyVectors);

KeyCounts::KeyCounts(uint32_t lower_key, uint32_t upper_key, int bucket_shift)
    : lower(lower_key), upper(upper_key), shift(bucket_shift), between((size_t{upper_key - lower_key} >> shift) + 1) {}

void CountKeys(KeyOrder order, DType dtype, const std::byte* values, size_t count, KeyCounts& counts) {
  const size_t done = HWY_DYNAMIC_DISPATCH(CountKeyVectors)(order, dtype, values, count, counts);
  VisitBits(dtype, [&](auto zero) {
    using Bits = decltype(zero);
    for (size_t i = done; i < count; ++i) {
      const uint32_t key = KeyOf(order, LoadLE<Bits>(values + i * sizeof(Bits)));
      if (key < counts.lower) {
        ++counts.below;
      } else if (key == counts.lower) {
        ++counts.at_lower;
      } else if (key < counts.upper) {
        ++counts.between[(key - counts.lower) >> counts.shift];
      } else if (key == counts.upper) {
        ++counts.at_upper;
      }
    }
  });
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
