#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/analysis/analysis.h"
#include "core/base/byte_source.h"
#include "core/safetensors/safetensors.h"
#include "core/simd/error_sums.h"
#include "core/simd/rotary.h"

namespace kvcompress {

struct AnalysisOptions {
  simd::RotaryEmbedding rotary;  // undone for keys; with a theta of 0 they are left alone
  bool per_head =
      false;  // each head of a tensor of rank 3 or more, the third axis from the last, has figures of its own
};

// What some values of a file are like.
struct AnalyzedValues {
  std::string tensor;  // whose they are
  DType dtype = DType::kF16;
  std::optional<uint64_t> head = std::nullopt;  // of this one alone
  bool unrotated = false;                       // with the rotation undone
  TensorAnalysis figures = {};
  double mean_difference = 0;  // of unrotated values: the mean of |unrotated - as they are|
  // What int4 would lose, of a whole tensor as it is; nothing where int4 refuses it.
  std::optional<ErrorSums> int4 = std::nullopt;
};

struct FileAnalysis {
  std::vector<AnalyzedValues> rows;   // each tensor, then its heads; each followed by its unrotated form
  std::vector<std::string> warnings;  // a line each
  uint64_t bytes = 0;                 // that were looked at, of `tensor_bytes`
  uint64_t tensor_bytes = 0;

  bool whole() const { return bytes == tensor_bytes; }
};

// INVALID_ARGUMENT for a rotation of channels that keys of the file have not.
absl::Status CheckRotation(const safetensors::Header& header, const simd::RotaryEmbedding& rotation);

// Looks at the file's F16, BF16 and F32 tensors; of a large file only at evenly spaced parts. INVALID_ARGUMENT for
// heads of a file that is too large to be looked at whole, and as of CheckRotation.
absl::StatusOr<FileAnalysis> AnalyzeFile(const ByteSource& file, const safetensors::Header& header,
                                         const AnalysisOptions& options);

}  // namespace kvcompress
