#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "core/safetensors/safetensors.h"

namespace kvcompress::safetensors {

// The entries, in file order, and the metadata of the header text `json`; offsets and sizes are not checked against
// each other. Errors as ReadHeader's. Takes no recursion, linear time, and memory of a few times the text.
absl::StatusOr<Header> ParseHeaderJson(std::string_view json);

// `text` in quotes for a message: escaped, and shortened when long.
std::string Quoted(std::string_view text);

}  // namespace kvcompress::safetensors
