#pragma once

#include <cstdint>

#include "core/artifact/artifact.h"

namespace kvcompress::testing {

// Keys and values of layer 0 and keys of layer 2, of four heads in groups of two. Keys of layer 0 have matrices that
// are not orthogonal; `seed` makes artifacts differ.
inline Artifact SmallArtifact(uint64_t seed = 0, uint64_t head_dim = 2) {
  Artifact artifact;
  artifact.heads = 4;
  artifact.head_dim = head_dim;
  artifact.group_heads = 2;
  artifact.rotary =
      simd::RotaryEmbedding{.theta = 10000.5, .pairs = simd::RotaryPairs::kInterleaved, .dims = 2, .offset = 0};
  artifact.tokens = 12345 + seed;
  for (const ArtifactKey key : {ArtifactKey{0, false}, ArtifactKey{0, true}, ArtifactKey{2, false}}) {
    ArtifactTensor tensor;
    tensor.step = 0.5f + static_cast<float>(key.layer);
    const size_t dim = artifact.group_dim();
    for (size_t i = 0; i < 2 * dim; ++i) {
      tensor.mean.push_back(static_cast<float>(i) - 3.25f);
      tensor.sigma.push_back(1.0f / static_cast<float>(i + 1));
    }
    const bool orthogonal = key.layer == 2 || key.is_value;
    for (size_t group = 0; group < 2; ++group) {
      for (size_t i = 0; i < dim; ++i) {
        for (size_t j = 0; j < dim; ++j) {
          // A rotation of the channels by one place, with a scale.
          tensor.forward.push_back(j == (i + 1) % dim ? (orthogonal ? -1.0f : 4.0f) : 0.0f);
          tensor.inverse.push_back(i == (j + 1) % dim ? (orthogonal ? -1.0f : 0.25f) : 0.0f);
        }
      }
    }
    artifact.tensors[key] = tensor;
  }
  return artifact;
}

}  // namespace kvcompress::testing
