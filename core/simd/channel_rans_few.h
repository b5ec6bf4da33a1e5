#pragma once

#include "core/simd/channel_rans.h"

// The strips of channel_rans.h in few lanes, of which vectors would be half empty, or without vectors: the lanes' steps
// stand side by side, so that each hides the others' latency. One body serves all instruction sets.
namespace kvcompress::simd {

// Whether the calls below take so many lanes and channels.
constexpr bool AreFewLanes(size_t lanes, size_t channels) { return lanes <= kStripChannels && channels % lanes == 0; }

// As EncodeStrip.
[[nodiscard]] bool EncodeFewLanes(const StripTables& tables, const uint8_t* symbols, const int32_t* k, size_t tokens,
                                  size_t channels, ChannelRansEncoder& encoder);
// As DecodeStrip, but that it leaves tokens undone for which the words that are left might not suffice. Returns how
// many it has decoded; *ok becomes false with an escape that is none.
size_t DecodeFewLanes(const StripTables& tables, size_t tokens, size_t channels, StripStates* states,
                      ChannelRansDecoder& decoder, EscapeReader& escapes, int32_t* points, bool* ok);

}  // namespace kvcompress::simd
