#pragma once

#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"

namespace kvcompress {

// `status`, its text after "PREFIX: "; OK stays OK.
inline absl::Status Prefixed(std::string_view prefix, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrFormat("%s: %s", prefix, status.message()));
}

}  // namespace kvcompress
