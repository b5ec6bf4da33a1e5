#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace kvcompress {

// The contents of a file that the command line names. An error "read WHAT: ..." for a file that cannot be read or is
// larger than `max_mebibytes`.
absl::StatusOr<std::string> ReadText(std::string_view what, const std::string& path, uint64_t max_mebibytes);

}  // namespace kvcompress
