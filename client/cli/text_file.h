#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace kvcompress {

// What is in a file that the command line names. Errors read "read WHAT: ...", also for a file that is larger than
// that.
absl::StatusOr<std::string> ReadText(std::string_view what, const std::string& path, uint64_t max_mebibytes);

}  // namespace kvcompress
