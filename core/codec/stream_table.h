#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/base/bytes.h"

// The table in front of a payload's streams (docs/format.md, "Block payload"): of each stream its size, and its sizes
// after each byte codec.
namespace kvcompress {

// Of a table of so many sizes, compact or not; a plain one has all of these.
constexpr size_t MaxTableBytes(size_t sizes) { return 4 * sizes; }

// Writes the table of the streams that fill `payload` after its first MaxTableBytes, and moves them right after it.
// Returns what table and streams take. Sizes are below 2^28.
size_t WriteStreamTable(std::span<const uint32_t> sizes, bool compact, MutableByteSpan payload);

// Takes the table of so many streams and byte codecs from the front of `payload`; false where there is none.
bool ReadStreamTable(bool compact, size_t streams, size_t byte_codecs, ByteSpan& payload, std::vector<uint32_t>& sizes);

}  // namespace kvcompress
