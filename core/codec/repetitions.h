#pragma once

#include <cstdint>

#include "core/base/bytes.h"

namespace kvcompress {

// How many values in a row must be found again before a reference to them, of some 26 bits, is worth its while, where
// `count` of them take `bits` without references.
constexpr size_t RunFor(uint64_t count, uint64_t bits) {
  if (bits >= 5 * count) return 8;
  return 2 * bits >= 5 * count ? 16 : 32;
}

// Of how many runs it is one that begins like an earlier one, in units of 1/256, as a sample shows. A run has `run`
// values, a multiple of 8, of `width` bytes; of each 8 bytes of it the bits are compared that `mask` has.
size_t RepeatingRuns(ByteSpan values, size_t width, size_t run, uint64_t mask);

// How many of 256 make it worthwhile to look for matches: fewer where short ones pay, of which a sample sees less.
constexpr size_t RunsWorthLooking(size_t run) { return run == 8 ? 2 : 5; }
// How many leave no doubt that matches pay.
inline constexpr size_t kRunsBeyondDoubt = 48;

}  // namespace kvcompress
