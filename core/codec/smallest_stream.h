#pragma once

#include <cstddef>

#include "absl/status/status.h"
#include "core/base/bytes.h"

// The streams of the byte codec `smallest` (docs/format.md, "smallest").
namespace kvcompress {

// Returns the bytes written, fewer than `raw` has and at most encoded.size(); 0 where there would be as many. Matches
// are looked for if they may be there and a sample shows runs that repeat.
size_t EncodeSmallest(ByteSpan raw, bool may_match, MutableByteSpan encoded);

// Fills all of `raw`; DATA_LOSS where `encoded` does not come to that.
absl::Status DecodeSmallest(ByteSpan encoded, MutableByteSpan raw);

}  // namespace kvcompress
