#include "core/codec/tensor/transform/reconstruction.h"

#include <cmath>

namespace kvcompress {

Reconstruction::Scale Reconstruction::ScaleOf(const Segment& segment, const Piece& piece) const {
  Scale scale{.unit = std::ldexp(unit_, -piece.step_shift)};
  for (size_t c = 0; c < piece.channels; ++c) {
    scale.means[c] = static_cast<float>(segment.means[piece.first_channel + c]) * (unit_ * 0.5f);
  }
  return scale;
}

simd::PlacedValues Reconstruction::PlaceOf(const Segment& segment, const Piece& piece, float* values) const {
  const size_t first = piece.first_token * segment.channels + piece.first_channel;
  if (!IsFinal(segment)) return {DType::kF32, values + first, segment.channels};
  return {dtype_, block_ + (segment.first + first) * DTypeSize(dtype_), segment.channels};
}

void Reconstruction::Place(const Segment& segment, const Piece& piece, const int32_t* points, float* values) const {
  const Scale scale = ScaleOf(segment, piece);
  simd::PlaceStrip(points, piece.tokens, piece.channels,
                   {PlaceOf(segment, piece, values), scale.unit, scale.means.data()});
}

void Reconstruction::Finish(const Segment& segment, simd::RotaryTable& turns, float* values) {
  if (IsFinal(segment)) return;
  if (basis_.Changes(segment)) basis_.ToValues(segment, values);
  if (segment.turned) TurnSegment(format_, layout_, segment, simd::RotaryTurn::kForward, turns, values);
  basis_.ScatterHeads(segment, values);
  simd::NarrowLimited(dtype_, values, segment.count(), block_ + segment.first * DTypeSize(dtype_));
}

}  // namespace kvcompress
