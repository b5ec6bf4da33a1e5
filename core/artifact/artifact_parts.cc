#include "core/artifact/artifact_parts.h"

#include "absl/strings/str_format.h"

namespace kvcompress::artifact_file {

absl::Status BadFile(std::string_view text) {
  return absl::InvalidArgumentError(absl::StrFormat("artifact: %s", text));
}

std::vector<uint64_t> ShapeOf(const Artifact& artifact, PartIndex part) {
  if (part == kStep) return {1};
  std::vector<uint64_t> shape(kPartTable[part].rank, artifact.group_dim());
  shape[0] = artifact.groups();
  return shape;
}

std::vector<float> Transposed(const std::vector<float>& matrices, size_t dim) {
  std::vector<float> transposed(matrices.size());
  for (size_t at = 0; at < matrices.size(); at += dim * dim) {
    for (size_t i = 0; i < dim; ++i) {
      for (size_t j = 0; j < dim; ++j) transposed[at + i * dim + j] = matrices[at + j * dim + i];
    }
  }
  return transposed;
}

}  // namespace kvcompress::artifact_file
