#pragma once

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace kvcompress {

// For what a client hands to a sink in many parts, for each of which that may take its time. DEADLINE_EXCEEDED.
inline absl::Status CheckDeadline(absl::Time deadline) {
  if (deadline == absl::InfiniteFuture() || absl::Now() <= deadline) return absl::OkStatus();
  return absl::DeadlineExceededError("deadline exceeded");
}

}  // namespace kvcompress
