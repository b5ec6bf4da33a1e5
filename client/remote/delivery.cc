#include "client/remote/delivery.h"

#include <algorithm>

namespace kvcompress {
namespace {

absl::Status Different() { return absl::InternalError("it gave different bytes on a retry"); }

}  // namespace

void Delivery::BeginAttempt() {
  repeated_ = 0;
  repeated_digest_.Reset();
}

absl::StatusOr<bool> Delivery::IsNew(const TensorDesc& tensor) {
  if (tensor_ && *tensor_ != tensor) return Different();
  const bool is_new = !tensor_.has_value();
  tensor_ = tensor;
  return is_new;
}

absl::StatusOr<ByteSpan> Delivery::New(ByteSpan bytes) {
  const ByteSpan again = bytes.first(std::min<uint64_t>(bytes.size(), delivered_ - repeated_));
  if (!again.empty()) {
    repeated_digest_.Update(again);
    repeated_ += again.size();
    if (repeated_ == delivered_ && repeated_digest_.value() != digest_.value()) return Different();
  }
  const ByteSpan fresh = bytes.subspan(again.size());
  if (!fresh.empty()) {
    digest_.Update(fresh);
    delivered_ += fresh.size();
    repeated_ = delivered_;
  }
  return fresh;
}

absl::Status Delivery::EndJob() {
  if (repeated_ < delivered_) return Different();
  ++jobs_done_;
  tensor_.reset();
  delivered_ = 0;
  digest_.Reset();
  BeginAttempt();
  return absl::OkStatus();
}

}  // namespace kvcompress
