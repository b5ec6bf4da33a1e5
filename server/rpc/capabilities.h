#pragma once

#include "absl/status/statusor.h"
#include "core/artifact/artifact_store.h"
#include "kvcompress/v1/kvcompress.pb.h"
#include "server/config/options.h"

namespace kvcompress {

// What a daemon with these options can do, and how large the frames of the tensors in `request` can become. Errors of a
// tensor are those that Compress has for it; INVALID_ARGUMENT for more than 4096 of them.
// `artifacts` may be null.
absl::StatusOr<v1::CapabilitiesResponse> DescribeCapabilities(const Options& options, ArtifactStore* artifacts,
                                                              const v1::CapabilitiesRequest& request);

}  // namespace kvcompress
