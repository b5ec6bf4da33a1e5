#pragma once

#include <algorithm>

#include "core/simd/channel_rans.h"
#include "core/simd/segment_values.h"

// The strips of channel_rans.h in few lanes, of which vectors would be half empty, or without vectors: the lanes' steps
// stand side by side, so that each hides the others' latency. One body serves all instruction sets.
namespace kvcompress::simd {

// Whether vectors of lanes take so many lanes and channels.
constexpr bool FillVectors(size_t lanes, size_t channels) {
  return channels == kStripChannels && lanes >= kMinVectorLanes;
}
// Whether the calls below do.
constexpr bool AreFewLanes(size_t lanes, size_t channels) { return lanes <= kStripChannels && channels % lanes == 0; }

// As EncodeStrip.
[[nodiscard]] bool EncodeFewLanes(const StripTables& tables, const uint8_t* symbols, const int32_t* k, size_t tokens,
                                  size_t channels, ChannelRansEncoder& encoder);
// As DecodeStrip, but that it leaves tokens undone for which the words that are left might not suffice. Returns how
// many it has decoded; *ok becomes false with an escape that is none.
size_t DecodeFewLanes(const StripTables& tables, size_t tokens, size_t channels, StripStates* states,
                      ChannelRansDecoder& decoder, EscapeReader& escapes, int32_t* points, bool* ok);

namespace internal {

// Calls decode(count, points) for pieces of the tokens, whose points stay in the first cache, and places what they
// become. It says how many it has decoded; fewer are the last piece, and none is placed of one that is not ok.
template <class Decode>
size_t PlacePieces(size_t tokens, size_t channels, const Placing& placing, const bool* ok, Decode decode) {
  constexpr size_t kPiece = 128;
  int32_t points[kPiece * kStripChannels];
  size_t done = 0;
  for (bool whole = true; whole && done < tokens;) {
    const size_t count = std::min(kPiece, tokens - done);
    const size_t own = decode(count, points);
    if (!*ok) break;
    PlaceStrip(points, own, channels, {placing.values.After(done), placing.unit, placing.means});
    done += own;
    whole = own == count;
  }
  return done;
}

}  // namespace internal
}  // namespace kvcompress::simd
