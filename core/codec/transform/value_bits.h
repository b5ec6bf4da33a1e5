#pragma once

#include <cstdint>

#include "core/base/bytes.h"
#include "core/base/dtype.h"
#include "core/codec/codec.h"

// Values as the integers that their bits are, for transforms that neither compute nor round.
namespace kvcompress {

template <typename Bits>
inline constexpr auto kSignBit = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));

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

// TensorTransform::Forward of one that changes values one by one: `change` gets the bits of each, but for NaN, which
// stays, and returns those that take their place.
template <typename Change>
void ChangeEach(const Block& block, Buffer& values, Buffer& side, Change change) {
  values.Resize(block.values.size());
  side.Resize(0);
  // Copies, since what is written could alias the originals.
  const std::byte* const in = block.values.data();
  std::byte* const out = values.data();
  const size_t count = block.count;
  VisitBits(block.tensor.dtype, [=, dtype = block.tensor.dtype](auto zero) {
    using Bits = decltype(zero);
    const auto infinity = static_cast<Bits>(InfinityBits(dtype));
    for (size_t i = 0; i < count; ++i) {
      const auto bits = LoadLE<Bits>(in + i * sizeof(Bits));
      const bool is_nan = static_cast<Bits>(bits & ~kSignBit<Bits>) > infinity;
      StoreLE<Bits>(is_nan ? bits : change(bits), out + i * sizeof(Bits));
    }
  });
}

}  // namespace kvcompress
