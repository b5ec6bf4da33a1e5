#include "proto/wire/error_reason.h"

namespace kvcompress {
namespace {

constexpr char kReasonUrl[] = "kvcompress/error-reason";

}  // namespace

absl::Status WithReason(absl::Status status, v1::ErrorReason reason) {
  status.SetPayload(kReasonUrl, absl::Cord(v1::ErrorReason_Name(reason)));
  return status;
}

v1::ErrorReason ReasonOf(const absl::Status& status) {
  v1::ErrorReason reason = v1::ERROR_REASON_UNSPECIFIED;
  if (const auto payload = status.GetPayload(kReasonUrl)) v1::ErrorReason_Parse(std::string(*payload), &reason);
  return reason;
}

}  // namespace kvcompress
