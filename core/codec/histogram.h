#pragma once

#include <array>
#include <bit>
#include <cstdint>

#include "kvcompress/base/bytes.h"

namespace kvcompress {

// How often each byte value occurs, in at most 2^32 - 1 bytes.
using Histogram = std::array<uint32_t, 256>;

Histogram CountBytes(ByteSpan raw);

// The binary logarithm of n > 0 in units of 1/4096, rounded down: integers, so that every machine decides alike.
constexpr uint32_t FixedLog2(uint32_t n) {
  constexpr int kFraction = 12;
  const int whole = std::bit_width(n) - 1;
  uint64_t mantissa = uint64_t{n} << (31 - whole);  // in [1, 2), 31 fractional bits
  auto log = static_cast<uint32_t>(whole);
  for (int i = 0; i < kFraction; ++i) {
    mantissa = mantissa * mantissa >> 31;
    const auto bit = static_cast<uint32_t>(mantissa >> 32);
    mantissa >>= bit;
    log = log << 1 | bit;
  }
  return log;
}

// Streams of at least kSampledBytes are judged by the histogram of every sixteenth run of 64 bytes: most often it is
// the lower plane of values that does not shrink, and coding it only to see that takes as long as coding one that does.
inline constexpr size_t kSampledBytes = size_t{1} << 15;
Histogram CountSample(ByteSpan raw);
// Whether the frequencies of `sample` are worth coding by: a gain of less than 1/128 is not worth the time to decode.
bool Shrinks(const Histogram& sample);
inline bool SeemsToShrink(ByteSpan raw) { return raw.size() < kSampledBytes || Shrinks(CountSample(raw)); }

// CountBytes, but faster if the bytes are few different ones and `sample`, a histogram of part of them, shows that.
Histogram CountBytesLike(const Histogram& sample, ByteSpan raw);

}  // namespace kvcompress
