#pragma once

#include <string_view>

#include "absl/status/statusor.h"

namespace kvcompress {

// Bytes a second of a link that a person has written as a number and a unit, "25Gbit/s" or "3 GB/s": bits as bit/s, b/s
// or bps, bytes as B/s, after k, M, G or T for powers of 1000 or Ki, Mi or Gi for powers of 1024. A small b is a bit
// and a capital B a byte. INVALID_ARGUMENT that says what is accepted, also for what is not between
// kMinBandwidth and kMaxBandwidth.
absl::StatusOr<double> ParseBandwidth(std::string_view text);

// Bytes a second. The time that any bytes take is finite.
inline constexpr double kMinBandwidth = 0.125;
inline constexpr double kMaxBandwidth = 1e15;

}  // namespace kvcompress
