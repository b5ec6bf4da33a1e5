#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

// What the encoder of the codec `transform` finds out about the channels of a segment, all of them at once. All targets
// give the bits of `scalar`.
namespace kvcompress::simd {

// A deviation of 2^(class / 4) units.
inline constexpr int kMinClass = -12;
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

// The mean of a channel of this class differs from what is expected by a multiple of 2^shift: the fewer the tokens, the
// less can it be known, and gain.
constexpr int MeanShift(int of, size_t tokens) {
  return std::clamp((of + 13 - 2 * static_cast<int>(std::bit_width(tokens) - 1)) / 4, 0, 20);
}

// About the bits of a number that the side information has, beyond those of 0, which is the usual one; by its
// magnitude.
constexpr float BitsBeyondZero(int32_t number) {
  const int width = std::bit_width(static_cast<uint32_t>(number < 0 ? -number : number));
  return width == 0 ? 0 : 1 + 1.5f * static_cast<float>(width);
}

// The channels of a segment of so many tokens, in units.
struct ChannelSpan {
  size_t channels;
  size_t tokens;
  const float* means;
  const float* variances;
};

// Sets the class of each channel's variance, and `saved` to about the bits that coding its mean saves.
void ClassesOfVariances(const ChannelSpan& span, int32_t* classes, float* saved);
// Sets the classes of the second moments about means in halves of a unit, as they are coded.
void ClassesAboutMeans(const ChannelSpan& span, const int32_t* coded, int32_t* classes);
// Sets the means, in halves of a unit, as they are coded where `expected` are, or null for zeros: each differs by a
// multiple of 2^MeanShift of its class, or not at all where that costs less. `bits` becomes what that is in bits.
void ChooseMeans(const ChannelSpan& span, const int32_t* classes, const int32_t* expected, int32_t* coded, float* bits);

namespace scalar {
void ClassesOfVariances(const ChannelSpan& span, int32_t* classes, float* saved);
void ClassesAboutMeans(const ChannelSpan& span, const int32_t* coded, int32_t* classes);
void ChooseMeans(const ChannelSpan& span, const int32_t* classes, const int32_t* expected, int32_t* coded, float* bits);
}  // namespace scalar

}  // namespace kvcompress::simd
