#pragma once

#include <grpcpp/support/status.h>

#include <string>

#include "kvcompress/v1/kvcompress.pb.h"

// Daemons of version 0.1.0, which is of this client's major version, give no ErrorReason and know no batches: what they
// mean is known by their words alone, which are written here as they were then.
namespace kvcompress {

// Why a call by shared memory has ended. A status with details is not of such a daemon.
inline v1::ErrorReason ReasonInWords(const grpc::Status& status) {
  if (!status.error_details().empty()) return v1::ERROR_REASON_UNSPECIFIED;
  if (status.error_code() == grpc::StatusCode::NOT_FOUND) return v1::SHARED_MEMORY_LOST;
  if (status.error_code() != grpc::StatusCode::FAILED_PRECONDITION) return v1::ERROR_REASON_UNSPECIFIED;
  const std::string& text = status.error_message();
  if (text.starts_with("shared memory")) return v1::SHARED_MEMORY_LOST;
  return text.ends_with("needs another room") ? v1::OUTPUT_BUFFERS_TOO_SMALL : v1::ERROR_REASON_UNSPECIFIED;
}

// Whether a call has ended at its first batch, of which nothing was taken.
inline bool RefusesBatches(const grpc::Status& status) {
  return status.error_code() == grpc::StatusCode::INVALID_ARGUMENT &&
         status.error_message() == "message without a payload";
}

}  // namespace kvcompress
