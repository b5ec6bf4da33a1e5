#pragma once

#include "absl/status/status.h"
#include "kvcompress/v1/kvcompress.pb.h"

namespace kvcompress {

// The status, with what tells clients what to do.
absl::Status WithReason(absl::Status status, v1::ErrorReason reason);
v1::ErrorReason ReasonOf(const absl::Status& status);

}  // namespace kvcompress
