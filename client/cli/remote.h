#pragma once

#include "absl/status/statusor.h"
#include "client/cli/options.h"
#include "client/remote/remote_client.h"

namespace kvcompress {

// How to reach the daemon that `options` name, with the contents of their files. An error "read FLAG: ..." for a file
// that cannot be read, or does not hold what its flag asks for.
absl::StatusOr<RemoteOptions> ToRemoteOptions(const CliOptions& options);

}  // namespace kvcompress
