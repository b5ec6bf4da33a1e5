#pragma once

#include <cstddef>
#include <cstdint>

#include "core/base/dtype.h"
#include "core/simd/channel_rans.h"

// Passes over the values of a segment, [tokens, channels] in binary32, which the codec `transform` makes. All targets
// give the bits of `scalar`: sums over tokens go from the first to the last.
namespace kvcompress::simd {

// Values of `dtype`, which has a kernel, times `factor`. Returns the largest magnitude of the values as they are; NaN
// where one is NaN.
float LoadScaled(DType dtype, const void* values, size_t count, float factor, float* out);
// Values of `dtype`, which has a kernel, limited to its finite range and rounded.
void NarrowLimited(DType dtype, const float* values, size_t count, void* out);

// Of each channel the sum over the tokens that `skip` has no mark at, and of squares of the distance from `means`.
void ChannelSums(const float* values, size_t tokens, size_t channels, const uint8_t* skip, float* sums);
void ChannelSquares(const float* values, size_t tokens, size_t channels, const uint8_t* skip, const float* means,
                    float* sums);
// Of each token the sum over the channels of (value - mean)^2 weight: channel c in part c mod 16, then parts 8, 4, 2
// and 1 apart are added.
void TokenEnergies(const float* values, size_t tokens, size_t channels, const float* means, const float* weights,
                   float* energies);

// Adds to the values of tokens those of `addends`, one of each channel; `count` need not be whole tokens.
void AddToChannels(const float* addends, size_t channels, float* values, size_t count);

// Places what the points of `channels` channels of a strip become.
void PlaceStrip(const int32_t* points, size_t tokens, size_t channels, const Placing& placing);

namespace scalar {
float LoadScaled(DType dtype, const void* values, size_t count, float factor, float* out);
void NarrowLimited(DType dtype, const float* values, size_t count, void* out);
void ChannelSums(const float* values, size_t tokens, size_t channels, const uint8_t* skip, float* sums);
void ChannelSquares(const float* values, size_t tokens, size_t channels, const uint8_t* skip, const float* means,
                    float* sums);
void TokenEnergies(const float* values, size_t tokens, size_t channels, const float* means, const float* weights,
                   float* energies);
void AddToChannels(const float* addends, size_t channels, float* values, size_t count);
void PlaceStrip(const int32_t* points, size_t tokens, size_t channels, const Placing& placing);
}  // namespace scalar

}  // namespace kvcompress::simd
