#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "core/artifact/artifact.h"
#include "core/base/tensor.h"

// What reading and writing of artifacts' files share: the words of the metadata, and the parts of a tensor.
namespace kvcompress::artifact_file {

inline constexpr std::string_view kVersion = "1";
inline constexpr std::array<const char*, 2> kWeights = {"none", "given"};
inline constexpr std::array<const char*, 3> kRotary = {"none", "half", "interleaved"};
inline constexpr std::array<const char*, 4> kScaling = {"none", "linear", "llama3", "yarn"};  // of RotaryScaling::Kind

absl::Status BadFile(std::string_view text);

// What a vector of a tensor is called after "layer_0_key.", and how it lies in the file.
struct Part {
  std::string_view name;
  DType dtype;
  size_t rank;
};
enum PartIndex : size_t { kMean, kSigma, kStep, kForward, kInverse, kParts };
inline constexpr std::array<Part, kParts> kPartTable = {{{"mean", DType::kF32, 2},
                                                         {"sigma", DType::kF32, 2},
                                                         {"step", DType::kF32, 1},
                                                         {"forward", DType::kF16, 3},
                                                         {"inverse", DType::kF16, 3}}};

std::vector<uint64_t> ShapeOf(const Artifact& artifact, PartIndex part);

// The vector of a tensor; of `step` none.
template <typename Tensor>
auto& VectorOf(Tensor& tensor, PartIndex part) {
  switch (part) {
    case kMean: return tensor.mean;
    case kSigma: return tensor.sigma;
    case kForward: return tensor.forward;
    default: return tensor.inverse;
  }
}

// Of each of some matrices of dim * dim.
std::vector<float> Transposed(const std::vector<float>& matrices, size_t dim);

}  // namespace kvcompress::artifact_file
