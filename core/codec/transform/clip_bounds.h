#pragma once

#include <cstdint>

#include "core/codec/codec.h"
#include "core/codec/transform/value_bits.h"

namespace kvcompress {

// What stays, as order keys; everything where the tensor has no finite value.
class ClipBounds final : public TensorState {
 public:
  uint32_t lower = 0;
  uint32_t upper = ~uint32_t{0};
};

// Values outside of bounds of the whole tensor become these; NaN stays. The decoder has nothing to undo.
class ClipToBounds : public TensorTransform {
 public:
  bool lossless() const final { return false; }

  absl::Status Forward(const Block& block, const TensorState* state, const std::function<size_t(size_t)>&,
                       Buffer& values, Buffer& side) const final {
    const auto& bounds = *static_cast<const ClipBounds*>(state);
    LimitEach(block, bounds.lower, bounds.upper, values, side);
    return absl::OkStatus();
  }

  bool KeepsZero(DType dtype, const TensorState* state) const final {
    const auto& bounds = *static_cast<const ClipBounds*>(state);
    const auto zero = VisitBits(dtype, [](auto bits) -> uint32_t { return OrderKey(bits); });
    return bounds.lower <= zero && zero <= bounds.upper;
  }
};

}  // namespace kvcompress
