#pragma once

#include <cstdint>

#include "core/base/bytes.h"
#include "core/base/dtype.h"
#include "core/codec/codec.h"
#include "core/simd/key_counts.h"
#include "core/simd/value_limits.h"

// Values as the integers that their bits are, for transforms that neither compute nor round.
namespace kvcompress {

using simd::kSignBit;

// Integers that order like the values.
template <typename Bits>
constexpr Bits OrderKey(Bits bits) {
  return simd::KeyOf(simd::KeyOrder::kValue, bits);
}
// TensorTransform::Forward of one whose values saturate at these keys; NaN stays.
inline void LimitEach(const Block& block, uint32_t lower, uint32_t upper, Buffer& values, Buffer& side) {
  values.Resize(block.values.size());
  side.Resize(0);
  simd::LimitKeys(block.tensor.dtype, block.values.data(), block.count, lower, upper, values.data());
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
