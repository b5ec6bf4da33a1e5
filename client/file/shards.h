#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "absl/status/statusor.h"
#include "client/file/input.h"

namespace kvcompress {

// The shards that the index at `path`, which reads as `index`, names in its "weight_map", {TENSOR: FILE}, as one file:
// their tensors in the order of the shards' names and as they lie in each, and the metadata of all. INVALID_ARGUMENT
// for a shard that is not a plain file name, a tensor that is not where the index says, one that it does not name, and
// metadata in which shards differ.
absl::StatusOr<Input::Parts> OpenShards(const std::string& path, const nlohmann::json& index);

}  // namespace kvcompress
