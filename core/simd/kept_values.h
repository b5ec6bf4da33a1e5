#pragma once

#include <cstddef>
#include <cstdint>

#include "core/base/dtype.h"

// Values of which some are kept, as a bit mask says: bit i % 8 of byte i / 8 is that of value i. `width` is 1, 2 or 4
// bytes a value. Nothing here needs alignment.
namespace kvcompress::simd {

// Values that a mask tells from others.
enum class MarkOf {
  kAtLeast,   // a magnitude key (key_counts.h) of `key` or more
  kEqual,     // just this one
  kNegative,  // the sign bit
};

// Sets the bits of these values, and clears all others.
void MarkValues(MarkOf what, DType dtype, const std::byte* values, size_t count, uint32_t key, std::byte* mask);

// The same for kAtLeast; returns how many are set.
size_t MarkMagnitudes(DType dtype, const std::byte* values, size_t count, uint32_t threshold, std::byte* mask);

// How many values so many bytes of a mask keep.
size_t CountKept(const std::byte* mask, size_t bytes);

// How many values have just this magnitude key.
size_t CountMagnitude(DType dtype, const std::byte* values, size_t count, uint32_t key);

// The kept values one after the other. `out` has room for all `count`.
void PackKept(size_t width, const std::byte* values, size_t count, const std::byte* mask, std::byte* out);

// The inverse, with zeros for the others. `kept` has as many values as bits are set.
void UnpackKept(size_t width, const std::byte* kept, size_t count, const std::byte* mask, std::byte* out);

// The values in their places, with zeros for those that are not kept.
void ZeroUnkept(size_t width, const std::byte* values, size_t count, const std::byte* mask, std::byte* out);

}  // namespace kvcompress::simd
