#include "core/artifact/artifact.h"

#include <algorithm>
#include <span>

#include "absl/strings/str_format.h"
namespace kvcompress {
namespace {

constexpr uint64_t kMaxHeads = 65536;
constexpr double kMaxTheta = 1e12;
// So that sums of products stay far from the end of binary32.
constexpr float kMaxEntry = 1024;
constexpr float kMaxMagnitude = 0x1p+120f;
constexpr float kMaxStep = 0x1p+40f;
// Of each entry of forward * inverse from the identity's; F16 rounds the entries of both.
constexpr float kMaxDeviation = 1.0f / 32;

absl::Status Fault(std::string_view text) { return absl::InvalidArgumentError(absl::StrFormat("artifact: %s", text)); }

absl::Status CheckRotary(const simd::RotaryEmbedding& rotary, uint64_t head_dim) {
  if (!(rotary.theta >= 1 && rotary.theta <= kMaxTheta)) {
    return Fault(absl::StrFormat("the rotary theta is %g, not from 1 to %g", rotary.theta, kMaxTheta));
  }
  if (rotary.dims == 0 || rotary.dims % 2 != 0 || rotary.dims > head_dim || rotary.offset > head_dim - rotary.dims) {
    return Fault(absl::StrFormat("%d rotary channels from %d on are not pairs within the %d of a head", rotary.dims,
                                 rotary.offset, head_dim));
  }
  if (const std::string_view fault = simd::FaultOf(rotary.scaling, rotary.theta); !fault.empty()) return Fault(fault);
  return absl::OkStatus();
}

bool AllWithin(std::span<const float> values, float least, float most) {
  return std::all_of(values.begin(), values.end(), [&](float value) { return value >= least && value <= most; });
}

bool IsInverse(const float* forward, const float* inverse, size_t dim, std::vector<float>& row) {
  row.resize(dim);
  for (size_t i = 0; i < dim; ++i) {
    std::fill(row.begin(), row.end(), 0.0f);
    for (size_t k = 0; k < dim; ++k) {
      const float factor = forward[i * dim + k];
      const float* const other = inverse + k * dim;
      for (size_t j = 0; j < dim; ++j) row[j] += factor * other[j];
    }
    row[i] -= 1;
    if (!AllWithin(row, -kMaxDeviation, kMaxDeviation)) return false;
  }
  return true;
}

}  // namespace

std::string ArtifactKey::name() const { return absl::StrFormat("layer_%d_%s", layer, is_value ? "value" : "key"); }

uint64_t Artifact::tensor_bytes() const { return groups() * group_dim() * (2 + 2 * group_dim()) * sizeof(float); }

uint64_t GroupHeads(uint64_t heads, uint64_t head_dim, uint64_t group_dim) {
  uint64_t most = 1;
  for (uint64_t count = 2; count <= heads && count * head_dim <= group_dim; ++count) {
    if (heads % count == 0) most = count;
  }
  return most;
}

absl::Status CheckTensor(const Artifact& artifact, const ArtifactTensor& tensor) {
  const size_t dim = artifact.group_dim();
  const size_t rows = artifact.groups() * dim;
  if (tensor.mean.size() != rows || tensor.sigma.size() != rows || tensor.forward.size() != rows * dim ||
      tensor.inverse.size() != rows * dim) {
    return Fault("sizes that do not fit the groups of heads");
  }
  if (!AllWithin(tensor.mean, -kMaxMagnitude, kMaxMagnitude))
    return Fault("mean: values that are not finite or too large");
  if (!AllWithin(tensor.sigma, 1 / kMaxMagnitude, kMaxMagnitude)) {
    return Fault("sigma: values that are not above 0 and finite, or too large");
  }
  if (!AllWithin({&tensor.step, 1}, 1 / kMaxStep, kMaxStep)) return Fault("step: not above 0 and finite, or too large");
  for (const auto* matrix : {&tensor.forward, &tensor.inverse}) {
    if (AllWithin(*matrix, -kMaxEntry, kMaxEntry)) continue;
    return Fault(absl::StrFormat("%s: values that are not finite or above %g",
                                 matrix == &tensor.forward ? "forward" : "inverse", kMaxEntry));
  }
  std::vector<float> row;
  for (size_t at = 0; at < rows * dim; at += dim * dim) {
    if (!IsInverse(&tensor.forward[at], &tensor.inverse[at], dim, row)) {
      return Fault(absl::StrFormat("group %d: inverse is not that of forward", at / (dim * dim)));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckShape(const Artifact& artifact) {
  if (artifact.heads == 0 || artifact.heads > kMaxHeads || artifact.head_dim == 0 || artifact.head_dim > kMaxGroupDim) {
    return Fault(absl::StrFormat("%d heads of %d channels are not 1 to %d of 1 to %d", artifact.heads,
                                 artifact.head_dim, kMaxHeads, kMaxGroupDim));
  }
  if (artifact.group_heads == 0 || artifact.heads % artifact.group_heads != 0 ||
      artifact.group_heads > kMaxGroupDim / artifact.head_dim) {
    return Fault(absl::StrFormat("groups of %d of %d heads of %d channels do not come out even, or have more than %d",
                                 artifact.group_heads, artifact.heads, artifact.head_dim, kMaxGroupDim));
  }
  return artifact.rotary ? CheckRotary(*artifact.rotary, artifact.head_dim) : absl::OkStatus();
}

}  // namespace kvcompress
