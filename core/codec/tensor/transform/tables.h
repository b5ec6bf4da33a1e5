#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>

#include "core/simd/channel_rans.h"

// The built-in probabilities of the codec `transform`, of values whose deviation is 2^(class / 4) units.
namespace kvcompress {

inline constexpr int kMinClass = -12;
inline constexpr int kMaxTableClass = 20;
// Whose points reach as far as a deviation of 2^22.
inline constexpr int kMaxClass = 88;

// The class of a variance in squared units: 4 log2 of its root, rounded, within kMinClass and kMaxClass.
inline int ClassOf(float ratio) {
  if (!(ratio > 0x1p-7f)) return kMinClass;
  const auto bits = std::bit_cast<uint32_t>(ratio);
  const auto mantissa = std::bit_cast<float>((bits & 0x7fffffu) | 0x3f800000u);
  const int octave = static_cast<int>(bits >> 23) - 127;
  const int of = 2 * octave + (mantissa >= 0x1.306fep+0f) + (mantissa >= 0x1.ae89fap+0f);
  return std::clamp(of, kMinClass, kMaxClass);
}

// The table of a class, and how many low bits of its values are not part of the symbols: above kMaxTableClass as many
// as take it back to one that has a table.
struct CodedClass {
  int table;  // kMinClass .. kMaxTableClass
  int low_bits;

  explicit constexpr CodedClass(int of) : table(of), low_bits(of > kMaxTableClass ? (of - kMaxTableClass + 3) / 4 : 0) {
    table -= 4 * low_bits;
  }
};

// By class, from kMinClass on; with the trellis or without.
std::span<const simd::ChannelTable> ChannelTables(bool trellis);

}  // namespace kvcompress
