#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

// The loops of the byte codec `rans` (docs/format.md, "rans"): range asymmetric numeral systems with static
// probabilities, in lanes that take turns.
//
// Symbol i is coded by the state of lane i mod lanes. A state x is in [kRansLow, 2^16 kRansLow). To encode a symbol of
// frequency f whose slots begin at `start`: if x >= f 2^19, push x mod 2^16 and shift it out; then
// x = floor(x / f) 2^12 + x mod f + start. Symbols are encoded from the last to the first group of `lanes`, within a
// group from lane 0 up, and the words pushed lie in that order. Decoding undoes every step, from the last: words are
// popped from the end, in a group by the highest lane first.
//
// Nothing here allocates or needs alignment. All targets give the same bytes; `scalar` is the definition.
namespace kvcompress::simd {

inline constexpr int kRansBits = 12;
inline constexpr uint32_t kRansSlots = 1u << kRansBits;
// With 31 bits a state converts to float, and compares, as a signed integer, which is all that AVX2 has.
inline constexpr uint32_t kRansLow = 1u << 15;
// Enough to hide the latency of a step; the vector bodies are made for this number.
inline constexpr size_t kRansWideLanes = 64;
inline constexpr size_t kRansNarrowLanes = 4;

// For each symbol its frequency, and 2^16 times its first slot.
using RansSymbolTable = std::array<uint32_t, 256>;
// For each slot 2^24 times its symbol + 2^12 times (the symbol's frequency - 1) + the slot's distance from its first.
using RansSlotTable = std::array<uint32_t, kRansSlots>;

// Encodes `count` bytes, which all have a frequency in `symbols`, in wide or narrow lanes, and writes the words, then
// the states in the order of the lanes, 4 bytes each. Returns how many bytes that are; 0 as soon as `capacity` - (what
// is written) < 6 lanes in front of a group, even if the rest might have fitted.
size_t RansEncode(const RansSymbolTable& symbols, const uint8_t* raw, size_t count, size_t lanes, uint8_t* out,
                  size_t capacity);

// The inverse. `slots` is consistent; `in` holds anything. False when it is not what RansEncode makes of `count` bytes.
[[nodiscard]] bool RansDecode(const RansSlotTable& slots, const uint8_t* in, size_t size, size_t lanes, uint8_t* raw,
                              size_t count);

namespace scalar {
size_t RansEncode(const RansSymbolTable& symbols, const uint8_t* raw, size_t count, size_t lanes, uint8_t* out,
                  size_t capacity);
[[nodiscard]] bool RansDecode(const RansSlotTable& slots, const uint8_t* in, size_t size, size_t lanes, uint8_t* raw,
                              size_t count);
}  // namespace scalar

}  // namespace kvcompress::simd
