#pragma once

#include <span>

#include "core/simd/channel_classes.h"
#include "core/simd/channel_rans.h"

// The built-in probabilities of the codec `transform`, of values whose deviation is 2^(class / 4) units.
namespace kvcompress {

using simd::ClassOf;
using simd::kMaxClass;
using simd::kMinClass;
inline constexpr int kMaxTableClass = 20;

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
