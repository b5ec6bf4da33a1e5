#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "core/base/dtype.h"

// Rows of values, as a rule a head of a token each, rotated so that all their coefficients look like one Gaussian
// source, and quantized to the levels that suit it (docs/format.md, "rotated"; the names are those of its text).
// A rotation spreads what a few channels have over all coefficients and keeps the norm: random signs, then a Hadamard
// transform of the largest power of two of coefficients, and where the row is longer, a second one, which overlaps it,
// of the row's last coefficients.
//
// Nothing here allocates, fails or needs alignment. All targets give the same bytes; the functions in `scalar` are the
// definition. Operations are of binary32, none of them fused.
namespace kvcompress::simd {

inline constexpr size_t kMaxRotatedRow = 1024;

// The largest magnitude that can be quantized: scales and all that is computed from them stay finite.
inline constexpr float kMaxRotatable = 0x1p120f;

struct RotatedFormat {
  DType dtype;
  int bits;    // 2, 3 or 4
  size_t row;  // values, 1 to kMaxRotatedRow; the last row of a call may be shorter
};

constexpr size_t RotatedRows(size_t row, size_t count) { return (count + row - 1) / row; }

// How many of them are for kernels, which take whole vectors of every target; the scalar code does the rest.
constexpr size_t KernelRows(const RotatedFormat& format, size_t count) {
  return format.row % 16 == 0 ? count / format.row : 0;
}

// Of the magnitudes of a code: the levels of Lloyd and Max for a Gaussian source, in units of which a standard
// deviation has 84, 59 and 46.5, and from which bound on each is meant, in 1/512 of a standard deviation. Bounds are
// multiples of 8, for the kernels.
struct RotatedLevels {
  std::array<uint8_t, 8> level;
  std::array<int16_t, 7> bound;
  int magnitudes;
};

constexpr RotatedLevels LevelsOf(int bits) {
  if (bits == 2) return {{38, 127}, {504}, 2};
  if (bits == 3) return {{14, 45, 79, 127}, {256, 536, 896}, 4};
  return {{6, 18, 31, 44, 58, 75, 96, 127}, {136, 272, 408, 560, 736, 944, 1232}, 8};
}
inline constexpr float kRotatedUnit = 512;

// +1 or -1 for each channel; the upper half is for the second transform.
alignas(64) inline constexpr std::array<float, 2 * kMaxRotatedRow> kRotatedSigns = [] {
  std::array<float, 2 * kMaxRotatedRow> signs{};
  uint32_t state = 0x2545f491;
  for (float& sign : signs) {
    state = state * 1664525u + 1013904223u;
    sign = state >> 31 != 0 ? -1.0f : 1.0f;
  }
  return signs;
}();

// Energies outside of this are not computed from the row's values as they are.
inline constexpr float kMinRotatedEnergy = 0x1p-64f;
inline constexpr float kMaxRotatedEnergy = 0x1p64f;

// What the length of a row decides.
struct RotatedRow {
  explicit RotatedRow(size_t values);

  size_t length;
  size_t span;          // P, of a Hadamard transform
  float root;           // an upper bound of (P length)^1/2
  float overlap;        // P^-1/2: what lies in both transforms is multiplied by it between them
  float unit;           // w: coefficients times w / norm are in 1/512 of a standard deviation
  float scale_divisor;  // w P 2^-k
  float level_unit;     // 2^-k: a level's size before the scale

  size_t second() const { return length - span; }  // where the second transform begins; 0: there is none
  // Whether binary32 holds the products of a scale and sums of levels, which are below 2^7 span.
  bool has_exact_products() const { return second() == 0 && span <= 512; }

  // The scale with which levels have the least error, where `cross` is the sum of their products with the coefficients.
  float ScaleOf(int32_t cross, int32_t squares, float norm) const {
    return static_cast<float>(cross) / static_cast<float>(squares) * norm / scale_divisor;
  }
};

// Whether `count` values are all below 2^-64 and not all 0, so that no row's energy can be computed from its values. Of
// most one value tells.
bool AreSmall(DType dtype, const std::byte* values, size_t count);

// On a thread that computes with 0 in place of subnormal numbers: the energy of `count` values, of which one is 1 or
// more, and `value` times 2^exponent, both as on any other.
float ExactEnergy(const float* values, size_t count);
float ExactPower(float value, int exponent);

// The energy of a row, whose squares 16 lanes have added up.
inline float EnergyOf(float* lanes) {
  for (size_t half = 8; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// The bits of a scale: of F16 or, where that has no normal number for it, with the sign bit, of bfloat16.
uint16_t RotatedScaleBits(float scale);
// The scale that these bits are.
float RotatedScaleOf(uint16_t bits);
constexpr bool IsFiniteRotatedScale(uint16_t bits) {
  return (bits & 0x8000) != 0 ? (bits & 0x7f80) != 0x7f80 : bits < InfinityBits(DType::kF16);
}

// Quantizes `count` values into RotatedRows() scales of 16 bits and a code a byte. Returns false, with the outputs
// unspecified, when a value is not finite or its magnitude is above kMaxRotatable. `decoded`, if not null, receives
// what they decode to.
[[nodiscard]] bool QuantizeRotated(const RotatedFormat& format, const void* values, size_t count, void* scales,
                                   uint8_t* codes, void* decoded = nullptr);

// The inverse. Scales are finite; of codes the bits above `bits` are 0.
void DequantizeRotated(const RotatedFormat& format, const void* scales, const uint8_t* codes, size_t count,
                       void* values);

namespace scalar {
[[nodiscard]] bool QuantizeRotated(const RotatedFormat& format, const void* values, size_t count, void* scales,
                                   uint8_t* codes, void* decoded = nullptr);
void DequantizeRotated(const RotatedFormat& format, const void* scales, const uint8_t* codes, size_t count,
                       void* values);
}  // namespace scalar

}  // namespace kvcompress::simd
