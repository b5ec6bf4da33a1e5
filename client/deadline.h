#pragma once

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace kvcompress {

// DEADLINE_EXCEEDED once the deadline has passed. Clients call it between the parts that they hand to a sink, because a
// sink may take long over each.
inline absl::Status CheckDeadline(absl::Time deadline) {
  if (deadline == absl::InfiniteFuture() || absl::Now() <= deadline) return absl::OkStatus();
  return absl::DeadlineExceededError("deadline exceeded");
}

}  // namespace kvcompress
