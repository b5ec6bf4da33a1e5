#pragma once

#include <array>
#include <cstdint>

#include "core/base/bytes.h"
#include "core/codec/histogram.h"
#include "core/simd/prefix_codes.h"

// Canonical prefix codes of at most 11 bits for byte values. Bits of a stream go from the low end of each byte up, so
// codes are held with their first bit lowest.
namespace kvcompress {

inline constexpr int kMaxCodeBits = simd::kMaxPrefixBits;
inline constexpr uint32_t kCodeSlots = 1u << kMaxCodeBits;

// The bits of each byte value's code; 0 for those that have none.
using CodeLengths = std::array<uint8_t, 256>;

// The lengths with the fewest bits for `counts`, which has at least two byte values.
CodeLengths OptimalLengths(const Histogram& counts);

simd::PrefixCodes MakeCodes(const CodeLengths& lengths);

// The text of the lengths, at most kMaxLengthsBytes: 4 bits each, of an absent value and those after it 4 + 8.
inline constexpr size_t kMaxLengthsBytes = 256;
// Returns the end of what it wrote.
uint8_t* WriteLengths(const CodeLengths& lengths, uint8_t* out);
// Returns the size of the text, or 0 for lengths of which no complete code can be made.
size_t ReadLengths(ByteSpan in, CodeLengths& lengths);

}  // namespace kvcompress
