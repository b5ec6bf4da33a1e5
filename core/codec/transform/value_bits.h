#pragma once

#include <cstdint>

#include "core/base/bytes.h"
#include "core/base/dtype.h"

// Values as the integers that their bits are, for transforms that neither compute nor round.
namespace kvcompress {

template <typename Bits>
inline constexpr auto kSignBit = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));

template <typename Bits>
constexpr bool IsNanBits(DType dtype, Bits bits) {
  return static_cast<Bits>(bits & ~kSignBit<Bits>) > static_cast<Bits>(InfinityBits(dtype));
}

// Integers that order like the values: negative ones first, by falling magnitude, then -0, then +0. NaN with their sign
// lie outermost, the infinities next to them.
template <typename Bits>
constexpr Bits OrderKey(Bits bits) {
  return static_cast<Bits>((bits & kSignBit<Bits>) != 0 ? ~bits : bits | kSignBit<Bits>);
}
template <typename Bits>
constexpr Bits BitsOfKey(Bits key) {
  return static_cast<Bits>((key & kSignBit<Bits>) != 0 ? key ^ kSignBit<Bits> : ~key);
}

}  // namespace kvcompress
