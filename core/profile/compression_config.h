#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/tensor.h"

namespace kvcompress {

// Which heads are cut to which rank: a compression_config.json, as tools of low-rank compression write it and people
// do. As JSON:
//
//   {
//     "global": {"target_memory_reduction": 0.5, "d_head": 64, "algo_default": "kvsplice"},
//     "per_layer_head": {
//       "0/0": {"enabled": true, "rank": 32, "algo": "kvsplice", "d_k": 64, "d_v": 64},
//       "layer0/head1": {"enabled": true, "rank": 8}
//     }
//   }
//
// What "global" has may stand beside "per_layer_head" as well. Heads are kept whole that are not listed or not
// "enabled", which is false unless given; "rank" is 32 unless given, or d where that is less, and "d_k" and "d_v" are
// "d_head", which is 64. What the algorithms say, and figures that report how a config was made, change no rank.
class CompressionConfig {
 public:
  // Whether this JSON is meant to be one, right or wrong.
  static bool IsMeantBy(const nlohmann::json& json);

  // INVALID_ARGUMENT, a sentence that names the head: two spellings of one, fields and algorithms that there are not, a
  // rank below 1 or above d, what is not a number, a head that is enabled without an algorithm.
  static absl::StatusOr<CompressionConfig> FromJson(const nlohmann::json& json);
  // The same of a text, which may also be no JSON.
  static absl::StatusOr<CompressionConfig> Parse(std::string_view text);

  // How many coefficients are kept of each head of a tensor named layer_{i}_key|value: one number where all have the
  // same, none where all are kept. Where the config has more heads than the tensor, they are query heads, of which a
  // head takes its share, one after the other, and of these the largest rank.
  // INVALID_ARGUMENT, a sentence, where they are no whole number for each head, where no layer lists all of them, so
  // that their number is not known, and for heads whose d is another one than the tensor's.
  absl::StatusOr<std::vector<uint32_t>> RanksFor(const TensorDesc& tensor) const;

  const std::set<int64_t>& layers() const { return layers_; }  // of which heads are listed

 private:
  struct Head {
    bool enabled = false;
    uint32_t rank = 0;
    uint32_t d_k = 0, d_v = 0;
  };
  using HeadKey = std::pair<int64_t, int64_t>;  // layer, head

  absl::Status Add(std::string_view key, const nlohmann::json& fields, const Head& usual, std::string_view algo);
  absl::Status CheckMapping(const TensorDesc& tensor, uint64_t heads) const;

  std::map<HeadKey, Head> heads_;
  std::set<int64_t> layers_;
  uint64_t head_count_ = 0;     // one more than the last head of any layer
  bool lists_a_layer_ = false;  // all heads of one
};

}  // namespace kvcompress
