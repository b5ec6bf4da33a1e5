#pragma once

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace kvcompress {

// DEADLINE_EXCEEDED after the deadline. Clients ask before each part that they hand to a sink, which may be slow.
inline absl::Status CheckDeadline(absl::Time deadline) {
  if (deadline == absl::InfiniteFuture() || absl::Now() <= deadline) return absl::OkStatus();
  return absl::DeadlineExceededError("deadline exceeded");
}

}  // namespace kvcompress
