#pragma once

#include <grpcpp/support/status.h>

#include <optional>
#include <string>

#include "absl/time/time.h"

namespace kvcompress {

// A status whose details (grpc-status-details-bin) are a google.rpc.RetryInfo: the same call may succeed after `delay`.
grpc::Status RetryableStatus(grpc::StatusCode code, const std::string& message, absl::Duration delay);

// What the RetryInfo of `status` says, whoever has sent it; empty when there is none that makes sense.
std::optional<absl::Duration> RetryDelay(const grpc::Status& status);

}  // namespace kvcompress
