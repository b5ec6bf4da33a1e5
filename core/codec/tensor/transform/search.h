#pragma once

#include "absl/status/statusor.h"
#include "core/base/byte_source.h"
#include "core/codec/tensor/transform/block.h"

// The step of a whole tensor, found by coding blocks of it.
namespace kvcompress {

struct TransformTarget {
  double bits = 0;  // of a value, at most, with all that a frame has
  double snr = 0;   // dB, at least, of the values and of what changes from token to token; one of the two is above 0
};

// Blocks from all over the tensor are tried, a few of them at most, so that of larger tensors the target is met about.
absl::StatusOr<float> FindStep(const TransformFormat& format, bool sinks, const TransformTarget& target,
                               const TensorDesc& tensor, const ByteSource& values, size_t block_elements);

}  // namespace kvcompress
