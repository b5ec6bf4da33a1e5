#pragma once

#include "absl/status/statusor.h"
#include "kvcompress/v1/kvcompress.pb.h"
#include "server/config/options.h"

namespace kvcompress {

// What a daemon with these options can do, and how large the frames of the tensors in `request` can become. Errors of a
// tensor are those that Compress has for it; INVALID_ARGUMENT for more than 4096 of them.
absl::StatusOr<v1::CapabilitiesResponse> DescribeCapabilities(const Options& options,
                                                              const v1::CapabilitiesRequest& request);

}  // namespace kvcompress
