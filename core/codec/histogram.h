#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <optional>

#include "core/base/bytes.h"

namespace kvcompress {

// How often each byte value occurs, in at most 2^32 - 1 bytes.
using Histogram = std::array<uint32_t, 256>;

Histogram CountBytes(ByteSpan raw);
// The same, faster for long streams where the bytes are few different ones, or pairs of them are.
Histogram CountBytesSoon(ByteSpan raw);

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

// The same, faster for numbers up to 4096.
uint32_t QuickLog2(uint32_t n);

// The order-0 entropy, in bits, of bytes that are counted.
uint64_t EntropyBits(const Histogram& counts);

// False for streams of more than 2^31 bytes, too long for histograms and the products of their counts. False, too, for
// streams of 32 KiB and more where a sample, every sixteenth run of 64 bytes, shows that coding would save less than
// 1/128: too little to pay for decoding. Most often that is the lower plane of values: coding all of it only to see
// that it does not shrink takes as long as coding one that does.
bool SeemsToShrink(ByteSpan raw);

// CountBytes, or nothing where SeemsToShrink is false; faster where the bytes are few different ones.
std::optional<Histogram> CountIfItShrinks(ByteSpan raw);

}  // namespace kvcompress
