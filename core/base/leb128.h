#pragma once

#include <cstdint>

#include "core/base/bytes.h"

// Numbers of 7 bits a byte, the low ones first; the high bit says that another byte follows.
namespace kvcompress {

inline constexpr size_t kMaxLeb128Bytes = 9;

// Writes a number of up to 63 bits, and returns the place after it.
inline std::byte* WriteLeb128(uint64_t number, std::byte* to) {
  for (; number >= 0x80; number >>= 7) *to++ = static_cast<std::byte>(number | 0x80);
  *to++ = static_cast<std::byte>(number);
  return to;
}

// Takes a number of up to 63 bits from the front of `bytes`; false where there is none, or one with needless bytes.
inline bool ReadLeb128(ByteSpan& bytes, uint64_t& number) {
  number = 0;
  for (int shift = 0; shift < 63 && !bytes.empty(); shift += 7) {
    const auto byte = std::to_integer<uint64_t>(bytes.front());
    bytes = bytes.subspan(1);
    number |= (byte & 0x7f) << shift;
    if (byte < 0x80) return byte != 0 || shift == 0;
  }
  return false;
}

}  // namespace kvcompress
