#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "core/base/dtype.h"

// Values as planes of bytes, the machinery of the codec `planes` (docs/format.md, "planes").
//
// A value of 2 or 4 bytes is a word: its bits as they are, or (kFields) rotated left by one, which makes the exponent
// of BF16 and binary32 the word's highest byte and moves the sign to the lowest bit. With a delta, each word but the
// first `distance` ones is replaced by its difference modulo 2^bits to, or its exclusive or with, the word `distance`
// values before. Plane 0 holds the highest byte of each word, the last plane the lowest.
//
// Nothing here allocates, fails or needs alignment. All targets give the same bytes; the functions in `scalar` are the
// definition.
namespace kvcompress::simd {

enum class PlaneSplit : uint8_t { kBytes = 0, kFields = 1 };
enum class PlaneDelta : uint8_t { kNone = 0, kToken = 1, kXor = 2 };

struct PlaneFormat {
  DType dtype = DType::kF16;
  PlaneSplit split = PlaneSplit::kBytes;
  PlaneDelta delta = PlaneDelta::kNone;
  size_t distance = 0;  // at least 1 with a delta
};

// A value is one of VisitBits: a dtype of 8 bytes has two, of 4 bytes, in each word, and `count` is of these halves.
inline constexpr size_t kMaxPlanes = 4;
// The planes' bytes; the first of them, one for each byte of a value, are used.
using PlanesIn = std::array<const uint8_t*, kMaxPlanes>;
using PlanesOut = std::array<uint8_t*, kMaxPlanes>;

void SplitPlanes(const PlaneFormat& format, const void* values, size_t count, const PlanesOut& planes);

// The inverse.
void MergePlanes(const PlaneFormat& format, const PlanesIn& planes, size_t count, void* values);

namespace scalar {
// The same for the values from `begin` to `end` alone, which MergePlanes is given in order.
void SplitPlanes(const PlaneFormat& format, const void* values, size_t begin, size_t end, const PlanesOut& planes);
void MergePlanes(const PlaneFormat& format, const PlanesIn& planes, size_t begin, size_t end, void* values);
}  // namespace scalar

}  // namespace kvcompress::simd
