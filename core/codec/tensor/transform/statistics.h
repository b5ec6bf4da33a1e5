#pragma once

#include <array>
#include <vector>

#include "core/codec/tensor/transform/segment.h"
#include "core/codec/tensor/transform/tables.h"

// What an encoder of `transform` finds out about a segment. Sums are in binary32 and in the order of the tokens, so
// that they are the same on every CPU.
namespace kvcompress {

// How far a channel's class is off its own, towards the expected one, and what that costs in bits.
struct ClassStep {
  int off;
  float bits;
};

// Classes and means of all channels as they are coded, and about what they and their differences from the best ones
// cost in bits.
struct ChannelChoice {
  std::vector<int> classes;
  std::vector<int32_t> means;
  std::vector<float> class_bits, mean_bits;
};

// Buffers of a thread's: of each channel, of each token.
struct SegmentStatistics {
  std::vector<float> means, variances, weights;
  std::vector<int> classes;    // of the variances
  std::vector<float> savings;  // bits that means save
  std::vector<float> energies;
  std::vector<uint8_t> is_special;
  ChannelChoice alone, repeated;  // without and with the segment before
  // By how far a class is above the expected one, from as far below as can be.
  std::array<ClassStep, 2 * (kMaxClass - kMinClass) + 1> class_steps;
  size_t class_steps_tokens = 0;  // of a segment that these are for
};

struct SegmentInput {
  const TransformFormat& format;
  bool sinks;           // the first tokens of a sequence get finer steps
  const float* values;  // of the segment, in units
  const Segment* before;
};

// How many of the segment's first tokens are the first of a sequence, which get finer steps and are never cut to ranks;
// 0 where it is too short to tell.
size_t SinksOf(const TransformFormat& format, const Segment& segment);

// Sets special tokens, classes and means.
void DescribeSegment(const SegmentInput& input, Segment& segment, SegmentStatistics& statistics);

}  // namespace kvcompress
