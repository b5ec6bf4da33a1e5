#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/base/bytes.h"
#include "core/base/dtype.h"

// Which value stands where when a tensor's values are sorted, by counting.
namespace kvcompress::simd {

// By what values are sorted: integers made of their bits.
enum class KeyOrder {
  kMagnitude,  // the bits without the sign: by magnitude, NaN above all
  kValue,      // negative ones first, by falling magnitude, then -0, then +0; NaN with their sign lie outermost
};

template <typename Bits>
inline constexpr auto kSignBit = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));

template <typename Bits>
constexpr Bits KeyOf(KeyOrder order, Bits bits) {
  if (order == KeyOrder::kMagnitude) return static_cast<Bits>(bits & ~kSignBit<Bits>);
  return static_cast<Bits>((bits & kSignBit<Bits>) != 0 ? ~bits : bits | kSignBit<Bits>);
}

// The largest key there can be.
template <typename Bits>
constexpr Bits MaxKey(KeyOrder order) {
  return static_cast<Bits>(order == KeyOrder::kMagnitude ? ~kSignBit<Bits> : ~Bits{0});
}

// How the keys of values lie about an interval of keys.
struct KeyCounts {
  uint32_t lower;
  uint32_t upper;  // not below `lower`
  int shift;       // of the buckets: the keys between the two by (key - lower) >> shift

  uint64_t below = 0;  // keys below `lower`
  uint64_t at_lower = 0;
  std::vector<uint64_t> between = {};  // the buckets
  uint64_t at_upper = 0;               // 0 where it is `lower`

  KeyCounts(uint32_t lower_key, uint32_t upper_key, int bucket_shift);
};

// Adds `count` values of `dtype`, which is not opaque. The faster, the fewer keys lie between the ends of the interval.
void CountKeys(KeyOrder order, DType dtype, const std::byte* values, size_t count, KeyCounts& counts);

}  // namespace kvcompress::simd
