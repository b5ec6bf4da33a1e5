#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "core/base/byte_source.h"
#include "core/codec/tensor/transform/block.h"

// Blocks of a tensor that the search for its step looks at.
namespace kvcompress {

struct SampleBlock {
  uint64_t index = 0;
  TokenRun tokens;
  TransformInput input;
  std::vector<std::byte> read;  // its values, where the source does not hold them in memory
};

// All of them, or `most` from all over the tensor: the middle ones of as many equal parts.
absl::StatusOr<std::vector<SampleBlock>> SampleBlocks(const TransformFormat& format, const TensorDesc& tensor,
                                                      const ByteSource& values, size_t block_elements, uint64_t most);

// About log2 of the root of the mean square of the values that are not refused; 0 where that is 0.
double LogSize(const std::vector<SampleBlock>& sample);

}  // namespace kvcompress
