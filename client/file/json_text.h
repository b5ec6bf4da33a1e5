#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"

namespace kvcompress {

// The JSON object that the file at `path` is. INVALID_ARGUMENT, "PATH: ...", for anything else, for keys that are given
// twice, and for a file of more than 100 MB.
absl::StatusOr<nlohmann::json> ReadJsonObject(const std::string& path);

}  // namespace kvcompress
