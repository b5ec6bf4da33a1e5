#pragma once

#include <vector>

#include "core/codec/tensor/transform/segment.h"

// What an encoder of `transform` finds out about a segment. Sums are in binary32 and in the order of the tokens, so
// that they are the same on every CPU.
namespace kvcompress {

// Buffers of a thread's: of each channel, of each token.
struct SegmentStatistics {
  std::vector<float> means, variances, second_moments, weights;
  std::vector<float> energies;
  std::vector<uint8_t> is_special;
};

struct SegmentInput {
  const TransformFormat& format;
  bool sinks;           // the first tokens of a sequence get finer steps
  const float* values;  // of the segment, in units
  const Segment* before;
};

// Sets special tokens, classes and means.
void DescribeSegment(const SegmentInput& input, Segment& segment, SegmentStatistics& statistics);

}  // namespace kvcompress
