#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "core/codec/tensor/transform/basis.h"
#include "core/codec/tensor/transform/segment.h"
#include "core/codec/tensor/transform/strip.h"
#include "core/simd/rotary.h"

// How the points of a segment become its values: in a decoder, and in an encoder that measures what it will be decoded
// to.
namespace kvcompress {

class Reconstruction {
 public:
  Reconstruction(const TransformFormat& format, const TransformLayout& layout, float step, SegmentBasis& basis)
      : format_(format), layout_(layout), unit_(UnitOf(format.trellis, step)), basis_(basis) {}

  // Tokens of a strip, from `first_token` on, that have one step: their points to the values, or coefficients, of the
  // segment.
  struct Piece {
    size_t first_channel, channels;
    size_t first_token, tokens;
    int step_shift;
  };
  // A point times `unit`, and its channel's mean, is a value.
  struct Scale {
    float unit;
    std::array<float, simd::kStripChannels> means = {};
  };
  Scale ScaleOf(const Segment& segment, const Piece& piece) const;
  void Place(const Segment& segment, const Piece& piece, const int32_t* points, float* values) const;

  // Makes values of `dtype` of the segment's, all of which are placed; `block` is where those of its block go.
  void Finish(const Segment& segment, DType dtype, simd::RotaryTable& turns, float* values, std::byte* block);

 private:
  const TransformFormat& format_;
  const TransformLayout& layout_;
  const float unit_;
  SegmentBasis& basis_;
};

}  // namespace kvcompress
