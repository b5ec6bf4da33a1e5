#pragma once

#include "absl/status/statusor.h"
#include "client/cli/options.h"
#include "client/remote/remote_client.h"

namespace kvcompress {

// The daemon of the options, with the contents of the files that they name. An error "read FLAG: ..." for a file that
// cannot be read, or is none of its kind.
absl::StatusOr<RemoteOptions> ToRemoteOptions(const CliOptions& options);

}  // namespace kvcompress
