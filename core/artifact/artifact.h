#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "core/simd/rotary.h"

// The artifact of a model (docs/format.md, "Artifacts", which is normative): what calibration learned of its keys and
// values, for codecs that are told of it by its id.
namespace kvcompress {

inline constexpr uint64_t kMaxArtifactLayers = 1024;
inline constexpr uint64_t kMaxGroupDim = 1024;  // channels of a group of heads

// What the groups of heads of a layer's keys or values have, one group after the other. With dim channels a group, and
// z a token's values of one: the coefficients are forward (z - mean), and z = inverse coefficients + mean. A matrix has
// dim rows, one after the other.
struct ArtifactTensor {
  std::vector<float> mean;     // groups * dim
  std::vector<float> forward;  // groups * dim * dim, values that F16 holds
  std::vector<float> inverse;
  std::vector<float> sigma;  // groups * dim: standard deviation of each coefficient, above 0
  float step = 1;            // scale of the quantizer's step, above 0

  bool operator==(const ArtifactTensor&) const = default;
};

// Keys before values in each layer.
struct ArtifactKey {
  uint64_t layer = 0;
  bool is_value = false;

  std::string name() const;  // "layer_0_key"

  auto operator<=>(const ArtifactKey&) const = default;
};

struct Artifact {
  uint64_t heads = 0;        // of each tensor
  uint64_t head_dim = 0;     // channels of a head
  uint64_t group_heads = 0;  // neighbouring heads that make a group; a divisor of `heads`
  // That keys are turned back by before anything else. Its start is that of each cache.
  std::optional<simd::RotaryEmbedding> rotary;
  uint64_t tokens = 0;  // of the smallest tensor that it was calibrated on
  bool weighted = false;
  std::map<ArtifactKey, ArtifactTensor> tensors;  // a layer, or one of its two, may lack

  uint64_t groups() const { return heads / group_heads; }
  uint64_t group_dim() const { return group_heads * head_dim; }
  uint64_t tensor_bytes() const;  // that the vectors of one tensor take in memory

  bool operator==(const Artifact&) const = default;
};

// How many of `heads` heads make a group of at most `group_dim` channels where groups come out even; 1 at least.
uint64_t GroupHeads(uint64_t heads, uint64_t head_dim, uint64_t group_dim);

// INVALID_ARGUMENT, "artifact: ...", for heads, groups or a rotary embedding that cannot be.
absl::Status CheckShape(const Artifact& artifact);
// The same for one of its tensors, whose shape is checked: sizes, values that are not finite or beyond the format's
// limits, matrices that are not inverse to each other.
absl::Status CheckTensor(const Artifact& artifact, const ArtifactTensor& tensor);

}  // namespace kvcompress
