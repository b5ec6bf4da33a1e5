#pragma once

#include <cstddef>

#include "core/base/bytes.h"

namespace kvcompress {

// Of how many positions in `raw`, at most 2^24 bytes, the next `run` bytes, 4 or more, stand earlier in it, too: in
// units of 1/256, as a sample shows.
size_t RepeatingRuns(ByteSpan raw, size_t run);

// Whether so many do that it is worthwhile to look for matches: more in few bytes, for the head of matches has its
// size.
inline bool RunsRepeat(ByteSpan raw, size_t run) {
  constexpr size_t kHead = size_t{1} << 16;
  return !raw.empty() && RepeatingRuns(raw, run) >= 2 + kHead / raw.size();
}

}  // namespace kvcompress
