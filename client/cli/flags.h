#pragma once

#include "client/cli/go_flags.h"
#include "client/cli/options.h"

namespace kvcompress {

// Declares every flag of kv-compress, in groups by what they are for; `options` must outlive `flags`.
void DeclareFlags(GoFlags& flags, CliOptions& options);

}  // namespace kvcompress
