#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "core/codec/tensor/transform/basis.h"
#include "core/codec/tensor/transform/segment.h"
#include "core/codec/tensor/transform/strip.h"
#include "core/simd/rotary.h"
#include "core/simd/segment_values.h"

// How the points of a segment become its values: in a decoder, and in an encoder that measures what it will be decoded
// to.
namespace kvcompress {

class Reconstruction {
 public:
  // `block`: where the block's values go.
  Reconstruction(const TransformFormat& format, const TransformLayout& layout, float step, SegmentBasis& basis,
                 DType dtype, std::byte* block)
      : format_(format),
        layout_(layout),
        unit_(UnitOf(format.trellis, step)),
        basis_(basis),
        dtype_(dtype),
        block_(block) {}

  // A point times `unit`, and its channel's mean, is a value.
  struct Scale {
    float unit;
    std::array<float, simd::kStripChannels> means = {};
  };
  // Of a strip's tokens that are not special.
  Scale ScaleOf(const Segment& segment, size_t first_channel, size_t channels) const;
  // Where a strip's values go: into the block, if that is all that is to be done with them, else into the segment's
  // `values`.
  simd::PlacedValues PlaceOf(const Segment& segment, size_t first_channel, float* values) const;

  // Makes values of the block of a segment's, all of which are placed.
  void Finish(const Segment& segment, simd::RotaryTable& turns, float* values);

 private:
  bool IsFinal(const Segment& segment) const { return basis_.is_none() && !segment.turned; }

  const TransformFormat& format_;
  const TransformLayout& layout_;
  const float unit_;
  SegmentBasis& basis_;
  const DType dtype_;
  std::byte* const block_;
};

}  // namespace kvcompress
