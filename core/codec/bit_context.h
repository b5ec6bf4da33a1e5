#pragma once

#include <array>
#include <cstdint>

#include "core/codec/range_coder.h"

namespace kvcompress {

// The probability that a bit is 1, which follows the bits so far (docs/format.md, "cabac"): after n of them it moves by
// 1/(n + 1.5) of its error, but never by less than after kMaxSeen.
class BitContext {
 public:
  // In units of 2^-kRangeBits; never 0.
  uint32_t probability() const { return state_ >> (32 - kRangeBits) | 1; }

  void Learn(bool bit) {
    const uint32_t seen = state_ & 1023;
    const int64_t p = state_ >> 10;
    const int64_t target = -int64_t{bit} & ((1 << 22) - 1);
    const int64_t next = p + ((target - p) * kSteps[seen] >> 16);
    state_ = static_cast<uint32_t>(next) << 10 | (seen + (seen < kMaxSeen));
  }

 private:
  static constexpr uint32_t kMaxSeen = 255;
  // In units of 2^-16.
  static constexpr std::array<uint32_t, kMaxSeen + 1> kSteps = [] {
    std::array<uint32_t, kMaxSeen + 1> steps = {};
    for (uint32_t n = 0; n <= kMaxSeen; ++n) steps[n] = (2u << 16) / (2 * n + 3);
    return steps;
  }();

  uint32_t state_ = 1u << 31;  // the probability in units of 2^-22, and below it, in 10 bits, n
};

}  // namespace kvcompress
