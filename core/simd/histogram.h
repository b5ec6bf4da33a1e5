#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace kvcompress::simd {

inline constexpr size_t kFewSymbols = 16;

// Adds to `counts` how often each byte value occurs. `symbols`, all different, should hold nearly all of the bytes:
// then this is several times as fast as a counter for each byte. `size` is below 2^32.
void CountFew(const std::array<uint8_t, kFewSymbols>& symbols, const uint8_t* raw, size_t size,
              std::array<uint32_t, 256>& counts);

// Does the same by counting each two neighbours as one number: half the counters to be written, where most pairs are
// some thousands, so that theirs stay in the cache next to the CPU. A thread keeps 128 KiB for it.
void CountPairs(const uint8_t* raw, size_t size, std::array<uint32_t, 256>& counts);

}  // namespace kvcompress::simd
