#pragma once

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace kvcompress {

// DEADLINE_EXCEEDED once the deadline has passed. For use between the parts of what a client hands to a sink, which may
// take its time with each.
inline absl::Status CheckDeadline(absl::Time deadline) {
  if (deadline == absl::InfiniteFuture() || absl::Now() <= deadline) return absl::OkStatus();
  return absl::DeadlineExceededError("deadline exceeded");
}

}  // namespace kvcompress
