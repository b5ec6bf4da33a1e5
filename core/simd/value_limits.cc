#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/value_limits.cc"
#include "core/simd/value_limits.h"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <type_traits>

#include "core/base/bytes.h"
#include "core/simd/half-inl.h"
#include "core/simd/key_counts.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// Bits as signed integers: of magnitudes these order like the bits, and all targets compare them.
template <typename Bits>
using SignedD = hn::ScalableTag<std::make_signed_t<Bits>>;
template <typename Bits>
constexpr std::make_signed_t<Bits> Signed(uint32_t bits) {
  return static_cast<std::make_signed_t<Bits>>(bits);
}

// Calls change(tag, bits) for all values, with vectors or with one value at a time, and stores what it returns.
template <typename Bits, typename Change>
HWY_INLINE void ChangeAll(const std::byte* values, size_t count, std::byte* out, Change change) {
  const SignedD<Bits> d;
  const hn::CappedTag<std::make_signed_t<Bits>, 1> one;
  const auto* const in = reinterpret_cast<const uint8_t*>(values);
  auto* const to = reinterpret_cast<uint8_t*>(out);
  size_t i = 0;
  for (; i + hn::Lanes(d) <= count; i += hn::Lanes(d)) {
    StoreAt(change(d, LoadAt(d, in + i * sizeof(Bits))), d, to + i * sizeof(Bits));
  }
  for (; i < count; ++i) StoreAt(change(one, LoadAt(one, in + i * sizeof(Bits))), one, to + i * sizeof(Bits));
}

// Bits to integers that order like the values, and back.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V SwapOrder(D d, V bits) {
  return hn::Xor(bits, hn::And(hn::BroadcastSignBit(bits), hn::Set(d, hwy::LimitsMax<hn::TFromD<D>>())));
}

template <typename Bits>
void LimitAll(Bits infinity, const std::byte* values, size_t count, uint32_t lower, uint32_t upper, std::byte* out) {
  ChangeAll<Bits>(values, count, out, [=](auto d, auto bits) HWY_ATTR {
    const auto least = hn::Set(d, Signed<Bits>(lower ^ kSignBit<Bits>));
    const auto most = hn::Set(d, Signed<Bits>(upper ^ kSignBit<Bits>));
    const auto magnitude = hn::And(bits, hn::Set(d, Signed<Bits>(MaxKey<Bits>(KeyOrder::kMagnitude))));
    const auto is_nan = hn::Gt(magnitude, hn::Set(d, Signed<Bits>(infinity)));
    const auto limited = hn::Min(hn::Max(SwapOrder(d, bits), least), most);
    return hn::IfThenElse(is_nan, bits, SwapOrder(d, limited));
  });
}

template <typename Bits>
size_t LargestOfVectors(Bits most, const std::byte* values, size_t count, uint32_t& largest) {
  const SignedD<Bits> d;
  const auto* const in = reinterpret_cast<const uint8_t*>(values);
  auto max = hn::Zero(d);
  size_t i = 0;
  for (; i + hn::Lanes(d) <= count; i += hn::Lanes(d)) {
    const auto bits = LoadAt(d, in + i * sizeof(Bits));
    const auto magnitude = hn::And(bits, hn::Set(d, Signed<Bits>(MaxKey<Bits>(KeyOrder::kMagnitude))));
    max = hn::Max(max, hn::IfThenZeroElse(hn::Gt(magnitude, hn::Set(d, Signed<Bits>(most))), magnitude));
  }
  HWY_ALIGN std::make_signed_t<Bits> lanes[hn::MaxLanes(d)];
  hn::Store(max, d, lanes);
  for (const auto lane : lanes) largest = std::max(largest, static_cast<uint32_t>(lane));
  return i;
}

// Of magnitudes that are not 0 the least, less 1, of the whole vectors; returns where they end.
template <typename Bits>
size_t LeastOfVectors(const std::byte* values, size_t count, uint32_t& least) {
  const hn::ScalableTag<Bits> d;
  const auto* const in = reinterpret_cast<const uint8_t*>(values);
  auto min = hn::Set(d, hwy::LimitsMax<Bits>());
  size_t i = 0;
  for (; i + hn::Lanes(d) <= count; i += hn::Lanes(d)) {
    const auto magnitude = hn::And(LoadAt(d, in + i * sizeof(Bits)), hn::Set(d, MaxKey<Bits>(KeyOrder::kMagnitude)));
    min = hn::Min(min, hn::Sub(magnitude, hn::Set(d, Bits{1})));
  }
  HWY_ALIGN Bits lanes[hn::MaxLanes(d)];
  hn::Store(min, d, lanes);
  least = *std::ranges::min_element(lanes);
  return i;
}

template <typename Bits>
void ClampAll(Bits infinity, const std::byte* values, size_t count, uint32_t limit, uint32_t of_infinity,
              std::byte* out) {
  ChangeAll<Bits>(values, count, out, [=](auto d, auto bits) HWY_ATTR {
    const auto top = hn::Set(d, Signed<Bits>(infinity));
    const auto magnitude = hn::And(bits, hn::Set(d, Signed<Bits>(MaxKey<Bits>(KeyOrder::kMagnitude))));
    auto clamped = hn::Min(magnitude, hn::Set(d, Signed<Bits>(limit)));
    clamped = hn::IfThenElse(hn::Eq(magnitude, top), hn::Set(d, Signed<Bits>(of_infinity)), clamped);
    return hn::IfThenZeroElse(hn::Gt(magnitude, top), hn::Or(hn::Xor(bits, magnitude), clamped));
  });
}

}  // namespace

void LimitKeyVectors(DType dtype, const std::byte* values, size_t count, uint32_t lower, uint32_t upper,
                     std::byte* out) {
  VisitBits(dtype, [&](auto zero) HWY_ATTR {
    LimitAll(static_cast<decltype(zero)>(InfinityBits(dtype)), values, count, lower, upper, out);
  });
}

// The largest magnitude up to `most` of the whole vectors; returns where they end.
size_t LargestUpToVectors(DType dtype, const std::byte* values, size_t count, uint32_t most, uint32_t& largest) {
  return VisitBits(dtype, [&](auto zero) HWY_ATTR {
    return LargestOfVectors(static_cast<decltype(zero)>(most), values, count, largest);
  });
}

size_t LeastMagnitudeVectors(DType dtype, const std::byte* values, size_t count, uint32_t& least) {
  return VisitBits(dtype, [&](auto zero) HWY_ATTR { return LeastOfVectors<decltype(zero)>(values, count, least); });
}

void ClampMagnitudeVectors(DType dtype, const std::byte* values, size_t count, uint32_t limit, uint32_t of_infinity,
                           std::byte* out) {
  VisitBits(dtype, [&](auto zero) HWY_ATTR {
    ClampAll(static_cast<decltype(zero)>(InfinityBits(dtype)), values, count, limit, of_infinity, out);
  });
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(LimitKeyVectors);
HWY_EXPORT(LargestUpToVectors);
HWY_EXPORT(LeastMagnitudeVectors);
HWY_EXPORT(ClampMagnitudeVectors);

void LimitKeys(DType dtype, const std::byte* values, size_t count, uint32_t lower, uint32_t upper, std::byte* out) {
  HWY_DYNAMIC_DISPATCH(LimitKeyVectors)(dtype, values, count, lower, upper, out);
}

namespace {

uint32_t LargestUpTo(uint32_t most, DType dtype, const std::byte* values, size_t count) {
  uint32_t largest = 0;
  const size_t done = HWY_DYNAMIC_DISPATCH(LargestUpToVectors)(dtype, values, count, most, largest);
  VisitBits(dtype, [&](auto zero) {
    using Bits = decltype(zero);
    for (size_t i = done; i < count; ++i) {
      const uint32_t magnitude = KeyOf(KeyOrder::kMagnitude, LoadLE<Bits>(values + i * sizeof(Bits)));
      if (magnitude <= most) largest = std::max(largest, magnitude);
    }
  });
  return largest;
}

}  // namespace

uint32_t LargestFinite(DType dtype, const std::byte* values, size_t count) {
  return LargestUpTo(MaxFiniteBits(dtype), dtype, values, count);
}

uint32_t LargestBits(DType dtype, const std::byte* values, size_t count) {
  return LargestUpTo(~uint32_t{0} >> (33 - 8 * DTypeSize(dtype)), dtype, values, count);
}

bool HasSubnormals(DType dtype, const void* values, size_t count) {
  if (dtype != DType::kBF16 && dtype != DType::kF32) return false;
  const auto* const from = static_cast<const std::byte*>(values);
  uint32_t least;
  const size_t done = HWY_DYNAMIC_DISPATCH(LeastMagnitudeVectors)(dtype, from, count, least);
  const uint32_t least_normal = uint32_t{1} << MantissaBits(dtype);
  if (least < least_normal - 1) return true;
  return VisitBits(dtype, [&](auto zero) {
    using Bits = decltype(zero);
    for (size_t i = done; i < count; ++i) {
      const uint32_t magnitude = KeyOf(KeyOrder::kMagnitude, LoadLE<Bits>(from + i * sizeof(Bits)));
      if (magnitude != 0 && magnitude < least_normal) return true;
    }
    return false;
  });
}

void ClampMagnitudes(DType dtype, const std::byte* values, size_t count, uint32_t limit, uint32_t of_infinity,
                     std::byte* out) {
  HWY_DYNAMIC_DISPATCH(ClampMagnitudeVectors)(dtype, values, count, limit, of_infinity, out);
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
