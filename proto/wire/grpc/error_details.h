#pragma once

#include <grpcpp/support/status.h>

#include <optional>
#include <string>

#include "absl/time/time.h"
#include "kvcompress/v1/kvcompress.pb.h"

namespace kvcompress {

// What the details of a status (grpc-status-details-bin) tell programs.
struct ErrorDetails {
  std::optional<absl::Duration> retry_delay = std::nullopt;  // google.rpc.RetryInfo: the call may succeed after it
  v1::ErrorReason reason = v1::ERROR_REASON_UNSPECIFIED;     // google.rpc.ErrorInfo
};

grpc::Status MakeStatus(grpc::StatusCode code, const std::string& message, const ErrorDetails& details);

// Of a status, whoever has sent it, without what makes no sense.
ErrorDetails DetailsOf(const grpc::Status& status);

}  // namespace kvcompress
