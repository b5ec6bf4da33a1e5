#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/byte_source.h"
#include "core/codec/tensor/transform/block.h"

// The step of a whole tensor.
namespace kvcompress {

struct TransformTarget {
  double bits = 0;  // of a value, at most, with all that a frame has
  double snr = 0;   // dB, at least, of the values and of what changes from token to token; one of the two is above 0
};

struct FoundStep {
  float step = 1;  // 0: none meets the target, and values are stored as they are
  size_t block_elements = 1;
  // What the streams of each block take at most, together; the encoder raises the step of one that takes more. Empty:
  // whatever they take.
  std::vector<size_t> most_bytes;

  size_t MostBytes(uint64_t first) const {
    return most_bytes.empty() ? SIZE_MAX : most_bytes[static_cast<size_t>(first / block_elements)];
  }
};

// Of larger tensors not all blocks are looked at, so that these meet the target about.
absl::StatusOr<FoundStep> FindStep(const TransformFormat& format, bool sinks, const TransformTarget& target,
                                   const TensorDesc& tensor, const ByteSource& values, size_t block_elements);

// The step 2^log, as far as steps may be as small or large.
float StepOf(double log);

}  // namespace kvcompress
