#pragma once

#include "core/base/bytes.h"
#include "core/codec/histogram.h"

// Frequencies for rANS in few bytes: the logarithms of the counts, rounded to parts of an octave, and of each only how
// it differs from the one before (docs/format.md, "smallest"). Of a stream of 8 KiB, frequencies in slots take a
// percent.
namespace kvcompress {

inline constexpr size_t kMaxLevelBytes = 2048;

// Writes the levels of `counts`, of which one at least is above 0, to `out`, which has room for kMaxLevelBytes. Returns
// their size, and the frequencies that a reader makes of them.
size_t WriteLevels(const Histogram& counts, uint8_t* out, Histogram& frequencies);

// The size of the levels at the front of `in`, or 0 where there are none.
size_t ReadLevels(ByteSpan in, Histogram& frequencies);

}  // namespace kvcompress
