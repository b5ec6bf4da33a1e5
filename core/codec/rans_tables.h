#pragma once

#include <optional>

#include "core/base/bytes.h"
#include "core/codec/histogram.h"
#include "core/simd/rans.h"

// What byte codecs with rANS (docs/format.md, "rans") have alike, whatever their frequencies look like in the stream.
// Frequencies are those of the 256 byte values, and sum to simd::kRansSlots.
namespace kvcompress {

// How many lanes encoders use for `count` bytes.
size_t RansLanes(size_t count);
bool IsRansLanes(size_t lanes);

// Frequencies in proportion to `weights`, which are 0 for what does not occur, and sum to less than 2^40: one slot for
// each symbol present, and the others in proportion to what a symbol has above one slot's worth, rounded so that the
// sums over the symbols so far are right.
Histogram NormalizeToSlots(const std::array<uint64_t, 256>& weights);
Histogram NormalizeToSlots(const Histogram& counts);

// The symbol that has all slots, if one has. Coding it changes no state and makes no word.
std::optional<std::byte> OnlySymbol(const Histogram& frequencies);

// About the bytes that `counts` symbols take, each of which has a frequency, besides the states.
uint64_t RansBytes(const Histogram& counts, const Histogram& frequencies);

// Words and states of `raw`, whose bytes all have a frequency. Returns their size, or 0 where they do not fit.
size_t EncodeRans(const Histogram& frequencies, size_t lanes, ByteSpan raw, MutableByteSpan coded);

// The inverse. `coded` holds anything; false when it is not what encodes to `raw.size()` bytes.
[[nodiscard]] bool DecodeRans(const Histogram& frequencies, size_t lanes, ByteSpan coded, MutableByteSpan raw);

}  // namespace kvcompress
