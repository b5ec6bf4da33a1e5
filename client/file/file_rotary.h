#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "core/artifact/artifact_store.h"
#include "core/base/tensor.h"
#include "core/profile/profile.h"
#include "core/simd/rotary.h"

namespace kvcompress {

using FileMetadata = std::map<std::string, std::string>;

// What a file's metadata say of its keys: rope_theta, and with it rope_pairs, rope_dims, rope_offset and rope_scaling;
// seq_start (docs/cli.md, "Rotary embeddings"). Theta 0: nothing, or that they do not turn. INVALID_ARGUMENT that names
// the key.
absl::StatusOr<simd::RotaryEmbedding> RotaryOfMetadata(const FileMetadata& metadata);
// Whether they say that keys do not turn: a rope_theta of 0.
bool SaysThatKeysDoNotTurn(const FileMetadata& metadata);

// How the keys of a file are turned back, and who said so: "codec", "artifact", "profile", "flags" or "metadata".
struct RotaryUse {
  simd::RotaryEmbedding rotary;
  std::string_view source;
};

// Completes the codecs of a file's tensors with the rotary embedding of its model.
class FileRotary {
 public:
  // Without `given` and `start` the metadata say it. Without `artifacts`, which must outlive this, it is not known what
  // those turn back that codecs name.
  FileRotary(const FileMetadata& metadata, const std::optional<simd::RotaryEmbedding>& given,
             std::optional<uint64_t> start, ArtifactStore* artifacts = nullptr);

  // The spec that `profile` has for a tensor, with the embedding. INVALID_ARGUMENT as of Profile, ChainSpec::WithRotary
  // and RotaryOfMetadata; of the latter only where the codec has a use for it.
  absl::StatusOr<std::string> CodecFor(const Profile& profile, const TensorDesc& tensor);

  // Of the first tensor whose keys may be turned back.
  const std::optional<RotaryUse>& use() const { return use_; }
  // Whether there were keys whose codec would have turned them back, had anybody said how.
  bool is_missed() const { return is_missed_; }

 private:
  const std::string_view source_;
  const bool may_turn_;
  ArtifactStore* const artifacts_;
  absl::StatusOr<simd::RotaryEmbedding> rotary_;
  std::optional<RotaryUse> use_;
  bool is_missed_ = false;
};

}  // namespace kvcompress
