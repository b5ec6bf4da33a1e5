#include "server/session/call_rates.h"

#include <algorithm>

namespace kvcompress {

CallRates::Clock::duration CallRates::Take(const std::string& client, Clock::time_point now) {
  if (due_.size() > forget_above_) ForgetQuiet(now);
  Clock::time_point& due = due_[client];
  const Clock::time_point next = std::max(due, now) + interval_;
  const Clock::duration wait = next - (now + std::max<Clock::duration>(std::chrono::seconds(1), interval_));
  if (wait > Clock::duration::zero()) return wait;
  due = next;
  return Clock::duration::zero();
}

void CallRates::ForgetQuiet(Clock::time_point now) {
  absl::erase_if(due_, [now](const auto& client) { return client.second <= now; });
  forget_above_ = std::max<size_t>(64, 2 * due_.size());  // so that a call pays for a few clients only
}

}  // namespace kvcompress
