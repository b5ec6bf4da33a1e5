#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/byte_source.h"
#include "core/base/tensor.h"
#include "core/safetensors/safetensors.h"

// A file's tensors in memory, for tools that look at values again and again: all of them, or of a large file evenly
// spaced parts.
namespace kvcompress {

struct SampledTensor {
  // Describes `values`. A tensor that was cut has the shape [1, runs, rows, channels] (without the 1 when the tensor's
  // rank is not 4): each run is rows that follow one another in one head.
  TensorDesc tensor;
  std::vector<std::byte> values;
  // Where each run begins along its head's tokens; empty for a tensor that was not cut.
  std::vector<uint64_t> first_rows;
};

struct FileSample {
  std::vector<SampledTensor> tensors;
  uint64_t file_bytes = 0;  // of all tensors of the file
  uint64_t bytes = 0;       // of those in `tensors`

  bool whole() const { return bytes == file_bytes; }
};

// Reads the tensors of `header` from `file`, whole when together they have at most `max_bytes`. Otherwise reads a part
// of each tensor, in proportion to its size and at least one row, so that all parts have about `max_bytes`. The same
// file gives the same sample. An entry that compression would refuse is an error.
absl::StatusOr<FileSample> SampleFile(const ByteSource& file, const safetensors::Header& header, uint64_t max_bytes);

}  // namespace kvcompress
