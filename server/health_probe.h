#pragma once

#include "absl/status/status.h"
#include "server/config/options.h"

namespace kvcompress {

inline constexpr char kServiceName[] = "kvcompress.v1.KvCompression";

// Asks the daemon that `options` describe for its health, with TLS where it has TLS. OK when it serves, else
// UNAVAILABLE with a line that says why.
absl::Status ProbeHealth(const Options& options);

}  // namespace kvcompress
