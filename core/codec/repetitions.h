#pragma once

#include <cstddef>

#include "core/base/bytes.h"

namespace kvcompress {

// Of how many positions in `raw`, at most 2^24 bytes, the next `run` bytes, 4 or more, stand earlier in it, too: in
// units of 1/256, as a sample shows.
size_t RepeatingRuns(ByteSpan raw, size_t run);

// Whether so many of `bytes` positions do that it is worthwhile to look for matches: more in few bytes, for the head of
// matches has its size.
constexpr bool IsWorthMatching(size_t repeating, size_t bytes) {
  constexpr size_t kHead = size_t{1} << 16;
  return bytes > 0 && repeating >= 2 + kHead / bytes;
}

}  // namespace kvcompress
