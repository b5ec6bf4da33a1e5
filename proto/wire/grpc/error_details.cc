#include "proto/wire/grpc/error_details.h"

#include "proto/wire/grpc/error_details.pb.h"

namespace kvcompress {
namespace {

constexpr char kErrorInfoUrl[] = "type.googleapis.com/google.rpc.ErrorInfo";
constexpr char kRetryInfoUrl[] = "type.googleapis.com/google.rpc.RetryInfo";
constexpr char kDomain[] = "kvcompress";

void Add(const char* url, const google::protobuf::MessageLite& detail, rpc::Status& status) {
  google::protobuf::Any& any = *status.add_details();
  any.set_type_url(url);
  any.set_value(detail.SerializeAsString());
}

void ReadErrorInfo(const std::string& bytes, ErrorDetails& details) {
  rpc::ErrorInfo info;
  if (!info.ParseFromString(bytes) || info.domain() != kDomain) return;
  v1::ErrorReason_Parse(info.reason(), &details.reason);
}

void ReadRetryInfo(const std::string& bytes, ErrorDetails& details) {
  rpc::RetryInfo info;
  if (!info.ParseFromString(bytes) || !info.has_retry_delay()) return;
  const google::protobuf::Duration& delay = info.retry_delay();
  if (delay.seconds() < 0 || delay.nanos() < 0 || delay.nanos() >= 1'000'000'000) return;
  details.retry_delay = absl::Seconds(delay.seconds()) + absl::Nanoseconds(delay.nanos());
}

}  // namespace

grpc::Status MakeStatus(grpc::StatusCode code, const std::string& message, const ErrorDetails& details) {
  rpc::Status status;
  if (details.reason != v1::ERROR_REASON_UNSPECIFIED) {
    rpc::ErrorInfo info;
    info.set_reason(v1::ErrorReason_Name(details.reason));
    info.set_domain(kDomain);
    Add(kErrorInfoUrl, info, status);
  }
  if (details.retry_delay) {
    absl::Duration rest;
    rpc::RetryInfo info;
    info.mutable_retry_delay()->set_seconds(absl::IDivDuration(*details.retry_delay, absl::Seconds(1), &rest));
    info.mutable_retry_delay()->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(rest)));
    Add(kRetryInfoUrl, info, status);
  }
  if (status.details().empty()) return {code, message};
  status.set_code(code);
  status.set_message(message);
  return {code, message, status.SerializeAsString()};
}

ErrorDetails DetailsOf(const grpc::Status& status) {
  ErrorDetails details;
  rpc::Status sent;
  if (status.error_details().empty() || !sent.ParseFromString(status.error_details())) return details;
  for (const google::protobuf::Any& detail : sent.details()) {
    if (detail.type_url() == kErrorInfoUrl) ReadErrorInfo(detail.value(), details);
    if (detail.type_url() == kRetryInfoUrl) ReadRetryInfo(detail.value(), details);
  }
  return details;
}

}  // namespace kvcompress
