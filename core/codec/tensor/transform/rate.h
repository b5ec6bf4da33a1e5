#pragma once

#include <array>
#include <cstddef>

#include "core/codec/tensor/transform/tables.h"

// What values take in words, and what they lose, by the classes of their channels.
namespace kvcompress {

// Of the values of a block, or several.
struct ClassCounts {
  static constexpr size_t kClasses = kMaxClass - kMinClass + 1;

  std::array<double, kClasses> values = {};  // by their class
  double channels = 0;                       // of all segments

  void Add(int of, double count) { values[static_cast<size_t>(of - kMinClass)] += count; }
  void Merge(const ClassCounts& other);
  // About the bits of all values with a step 2^octaves times as large as that of the counts.
  double Bits(bool trellis, double octaves) const;
  // About the sum of squares of all errors with that step, in squares of its unit; and of the values' deviations.
  double Noise(bool trellis, double octaves) const;
  double Signal(double octaves) const;
};

}  // namespace kvcompress
