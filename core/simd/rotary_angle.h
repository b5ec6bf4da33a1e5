#pragma once

#include <cstdint>

// The numbers by which rotary.h makes cosine and sine of a phase: over an eighth of a turn to either side, by the first
// terms of their series.
namespace kvcompress::simd::internal {

inline constexpr uint32_t kEighthTurn = 1u << 29;
inline constexpr float kRadians = 0x1.921fb6p-30f;  // 2 pi / 2^32

// Of x^9, x^7, ... x and of x^10, x^8, ... 1.
inline constexpr float kSineTerms[] = {1.0f / 362880, -1.0f / 5040, 1.0f / 120, -1.0f / 6, 1.0f};
inline constexpr float kCosineTerms[] = {-1.0f / 3628800, 1.0f / 40320, -1.0f / 720, 1.0f / 24, -1.0f / 2, 1.0f};

}  // namespace kvcompress::simd::internal
