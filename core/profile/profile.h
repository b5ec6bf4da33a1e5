#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/tensor.h"
#include "core/codec/chain_spec.h"
#include "core/profile/compression_config.h"
#include "core/simd/rotary.h"

namespace kvcompress {

// Which codec each tensor gets. As JSON:
//
//   {
//     "version": 1,
//     "default": "int4(group=64)",
//     "others": "lossless",
//     "rotary": {"theta": 500000, "pairs": "half", "dims": 64, "offset": 0, "start": 0,
//                "scaling": {"rope_type": "llama3", "factor": 8}},
//     "rules": [
//       {"layers": [0, 1], "codec": "raw|zstd(level=1)"},
//       {"layers": [2, 5], "kind": "key", "codec": "int8(group=64)"},
//       {"heads": [0, 3], "codec": "int8(group=32)"},
//       {"name": "encoder_*", "codec": "raw"}
//     ]
//   }
//
// The first rule whose every condition holds decides. When none does, keys and values get "default", by their name
// (layer_{i}_key|value) or their axes (seq and head_dim), and all other tensors, a recurrent state perhaps, "others",
// which is "lossless" unless given. "layers" is a closed range and "kind"
// is "key" or "value", both of tensors named layer_{i}_key|value only; "name" is a glob with * and ?. "heads" is a
// closed range of the heads of tensors with one heads axis: it decides for these heads, and the rules after it for the
// others. "rotary", of which all but "theta" may be left out, is the model's rotary embedding, for codecs that turn
// keys back (ChainSpec::WithRotary); its "scaling" is as in rope_scaling.h.
//
// A compression config (compression_config.h) is a profile as well, one that says ranks alone, for a codec that has to
// be given beside it.
class Profile {
 public:
  // A condition that is absent holds.
  struct Rule {
    std::optional<std::pair<int64_t, int64_t>> layers;
    std::optional<std::pair<int64_t, int64_t>> heads = {};
    std::optional<bool> is_key;
    std::optional<std::string> name;
    ChainSpec codec;
  };

  // What a spec says for every tensor; also one of the names of codec/named_chains.h.
  static absl::StatusOr<Profile> Uniform(std::string_view codec);

  // INVALID_ARGUMENT that begins with "profile: " and names the fault: JSON, unknown or missing keys, codec specs.
  static absl::StatusOr<Profile> Parse(std::string_view json);

  // Whether it says ranks alone: then CodecFor has no codec for keys and values until SetCodec.
  bool needs_codec() const { return ranks_.has_value(); }
  const CompressionConfig* ranks() const { return ranks_ ? &*ranks_ : nullptr; }  // null: it says none
  // INVALID_ARGUMENT, "profile: ...", for a spec or name that is none, and for one whose chains for keys and values
  // have no stage with an artifact, or ranks of their own. Only for a profile that needs_codec().
  absl::Status SetCodec(std::string_view codec);

  // Whether every tensor gets the same.
  bool is_uniform() const { return rules_.empty() && !others_codec_ && !default_codec_.differs(); }

  // Whether a rule, or a part of what a name means, holds for tensors named layer_{i}_key|value only.
  bool asks_for_layers() const;

  // What a key or value gets for which no rule decides.
  const std::string& default_codec() const { return default_codec_.text(); }

  // Canonical spec for a valid tensor; `heads(...)` where its heads get different ones. INVALID_ARGUMENT when these
  // cannot stand there (sparse, say), or are too many.
  absl::StatusOr<std::string> CodecFor(const TensorDesc& tensor) const;

  // What "rotary" says; theta 0 without it.
  const simd::RotaryEmbedding& rotary() const { return rotary_; }

  // For a tensor that is neither key nor value and for which no rule decides: "others" where the profile has a codec of
  // others, "default" where it gets that of keys and values (Uniform). Else empty.
  std::string_view PolicyFor(const TensorDesc& tensor) const;

 private:
  // Whether every condition but that of heads holds.
  static bool Holds(const Rule& rule, const TensorDesc& tensor);

  static absl::StatusOr<Profile> OfRanks(const nlohmann::json& config);
  absl::StatusOr<std::string> RankedCodecFor(const TensorDesc& tensor) const;

  // Of the tensor's stages, without the rotary embedding.
  absl::StatusOr<std::string> OwnCodecFor(const TensorDesc& tensor) const;

  ChainSpec default_codec_;  // one that takes no ranks where it needs_codec() and has none
  std::optional<CompressionConfig> ranks_;
  std::optional<ChainSpec> others_codec_;  // none: the default
  std::vector<Rule> rules_;
  simd::RotaryEmbedding rotary_;
};

}  // namespace kvcompress
