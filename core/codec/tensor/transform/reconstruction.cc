#include "core/codec/tensor/transform/reconstruction.h"

namespace kvcompress {

Reconstruction::Scale Reconstruction::ScaleOf(const Segment& segment, size_t first_channel, size_t channels) const {
  Scale scale{.unit = unit_};
  for (size_t c = 0; c < channels; ++c) {
    scale.means[c] = static_cast<float>(segment.means[first_channel + c]) * (unit_ * 0.5f);
  }
  return scale;
}

simd::PlacedValues Reconstruction::PlaceOf(const Segment& segment, size_t first_channel, float* values) const {
  if (!IsFinal(segment)) return {DType::kF32, values + first_channel, segment.channels};
  return {dtype_, block_ + (segment.first + first_channel) * DTypeSize(dtype_), segment.channels};
}

void Reconstruction::Finish(const Segment& segment, simd::RotaryTable& turns, float* values) {
  if (IsFinal(segment)) return;
  if (basis_.Changes(segment)) basis_.ToValues(segment, values);
  if (segment.turned) TurnSegment(format_, layout_, segment, simd::RotaryTurn::kForward, turns, values);
  basis_.ScatterHeads(segment, values);
  simd::NarrowLimited(dtype_, values, segment.count(), block_ + segment.first * DTypeSize(dtype_));
}

}  // namespace kvcompress
