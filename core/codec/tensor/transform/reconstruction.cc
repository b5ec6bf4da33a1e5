#include "core/codec/tensor/transform/reconstruction.h"

#include <cmath>

#include "core/simd/segment_values.h"

namespace kvcompress {

Reconstruction::Scale Reconstruction::ScaleOf(const Segment& segment, const Piece& piece) const {
  Scale scale{.unit = std::ldexp(unit_, -piece.step_shift)};
  for (size_t c = 0; c < piece.channels; ++c) {
    scale.means[c] = static_cast<float>(segment.means[piece.first_channel + c]) * (unit_ * 0.5f);
  }
  return scale;
}

void Reconstruction::Place(const Segment& segment, const Piece& piece, const int32_t* points, float* values) const {
  const Scale scale = ScaleOf(segment, piece);
  simd::PlaceStrip(points, piece.tokens, piece.channels, scale.unit, scale.means.data(),
                   values + piece.first_token * segment.channels + piece.first_channel, segment.channels);
}

void Reconstruction::Finish(const Segment& segment, DType dtype, simd::RotaryTable& turns, float* values,
                            std::byte* block) {
  if (basis_.Changes(segment)) basis_.ToValues(segment, values);
  if (segment.turned) TurnSegment(format_, layout_, segment, simd::RotaryTurn::kForward, turns, values);
  basis_.ScatterHeads(segment, values);
  simd::NarrowLimited(dtype, values, segment.count(), block + segment.first * DTypeSize(dtype));
}

}  // namespace kvcompress
