#include "proto/wire/grpc/error_details.h"

#include "proto/wire/grpc/error_details.pb.h"

namespace kvcompress {
namespace {

constexpr char kRetryInfoUrl[] = "type.googleapis.com/google.rpc.RetryInfo";

}  // namespace

grpc::Status RetryableStatus(grpc::StatusCode code, const std::string& message, absl::Duration delay) {
  rpc::RetryInfo info;
  info.mutable_retry_delay()->set_seconds(absl::IDivDuration(delay, absl::Seconds(1), &delay));
  info.mutable_retry_delay()->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(delay)));
  rpc::Status status;
  status.set_code(code);
  status.set_message(message);
  google::protobuf::Any& detail = *status.add_details();
  detail.set_type_url(kRetryInfoUrl);
  detail.set_value(info.SerializeAsString());
  return {code, message, status.SerializeAsString()};
}

std::optional<absl::Duration> RetryDelay(const grpc::Status& status) {
  rpc::Status details;
  if (!details.ParseFromString(status.error_details())) return std::nullopt;
  for (const google::protobuf::Any& detail : details.details()) {
    rpc::RetryInfo info;
    if (detail.type_url() != kRetryInfoUrl || !info.ParseFromString(detail.value()) || !info.has_retry_delay())
      continue;
    const google::protobuf::Duration& delay = info.retry_delay();
    if (delay.seconds() < 0 || delay.nanos() < 0 || delay.nanos() >= 1'000'000'000) continue;
    return absl::Seconds(delay.seconds()) + absl::Nanoseconds(delay.nanos());
  }
  return std::nullopt;
}

}  // namespace kvcompress
