#pragma once

#include <chrono>
#include <cstddef>
#include <string>

#include "absl/container/flat_hash_map.h"

namespace kvcompress {

// A rate that each of many clients may call at, in bursts of what a second allows: the generic cell rate algorithm
// (ITU-T I.371), which needs one point in time a client. Clients that have been quiet for a second cost nothing.
class CallRates {
 public:
  using Clock = std::chrono::steady_clock;

  // At least 1.
  explicit CallRates(size_t calls_per_second) : interval_(std::chrono::nanoseconds(1'000'000'000 / calls_per_second)) {}

  // Zero if the client may call, and the call counts. Else how long the client has to wait, and the call does not
  // count.
  Clock::duration Take(const std::string& client, Clock::time_point now);

  // Clients that are remembered: those that have called of late.
  size_t clients() const { return due_.size(); }

 private:
  void ForgetQuiet(Clock::time_point now);

  const Clock::duration interval_;
  absl::flat_hash_map<std::string, Clock::time_point> due_;  // when all calls would be over, at one each interval
  size_t forget_above_ = 64;
};

}  // namespace kvcompress
