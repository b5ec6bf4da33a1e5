#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "core/base/bytes.h"

// Rising indices below 2^28 as the gaps between them (docs/format.md, "Index lists").
namespace kvcompress {

constexpr size_t MaxIndexListBytes(size_t count) { return 4 * count; }

// Returns the number of bytes written.
size_t WriteIndexList(std::span<const uint32_t> indices, std::byte* out);

// Reads `count` indices below `limit` that fill `bytes`; DATA_LOSS for anything that WriteIndexList does not write.
absl::Status ReadIndexList(ByteSpan bytes, size_t count, size_t limit, std::vector<uint32_t>& indices);

}  // namespace kvcompress
