#pragma once

#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "core/base/bytes.h"

// Rising indices below 2^28 as the gaps between them (docs/format.md, "Index lists").
namespace kvcompress {

constexpr size_t MaxIndexListBytes(size_t count) { return 4 * count; }

// Calls visit(index) for the bits of a mask (core/simd/kept_values.h) that are set; it has whole words of 8 bytes.
template <typename Visit>
void ForEachMarked(ByteSpan mask, Visit visit) {
  for (size_t at = 0; at < mask.size(); at += sizeof(uint64_t)) {
    for (auto bits = LoadLE<uint64_t>(mask.data() + at); bits != 0; bits &= bits - 1) {
      visit(static_cast<uint32_t>(8 * at + static_cast<size_t>(std::countr_zero(bits))));
    }
  }
}

// Writes the indices of these bits, and returns the number of bytes.
size_t WriteIndexList(ByteSpan mask, std::byte* out);

// Reads `count` indices below `limit` that fill `bytes`; DATA_LOSS for anything that WriteIndexList does not write.
absl::Status ReadIndexList(ByteSpan bytes, size_t count, size_t limit, std::vector<uint32_t>& indices);

}  // namespace kvcompress
