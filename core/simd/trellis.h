#pragma once

#include <cstddef>
#include <cstdint>

#include "core/simd/channel_rans.h"
#include "core/simd/segment_values.h"

// Dependent quantization (docs/format.md, "transform"): two quantizers, of which a machine of four states that follows
// the parity of the values says whose turn it is. Points are integers, in units of the step: the first quantizer has
// the even ones, 2 k for the value k, the second 0 and the odd ones, 2 k - sgn k.
//
// Strips are kStripChannels numbers a token; channels that are not there are numbers like any other. All targets give
// the same bits; `scalar` is the definition.
namespace kvcompress::simd {

// Points reach so far that binary32 has all of them.
inline constexpr int32_t kMaxPoint = (1 << 24) - 1;

constexpr int32_t PointOf(int32_t k, size_t quantizer) { return quantizer == 0 ? 2 * k : 2 * k - (k > 0) + (k < 0); }

// The values whose points lie nearest to `y` in the sum of squares, from state 0 on; magnitudes of y are at most 2^24 -
// 8. `decisions` has room for 4 words a token; what a target writes there is its own.
void TrellisQuantize(const float* y, size_t tokens, uint32_t* decisions, int32_t* k);
// The values of the first quantizer alone whose points lie nearest.
void PlainQuantize(const float* y, size_t tokens, int32_t* k);

// The symbols of values, of the quantizers that the states say, which are passed on; without `states` of the first.
// escapes[t] says which of the first `channels` channels of token t have one; symbols and points of the others are of
// no meaning. `points`, of the values, may be null.
void StripSymbols(const StripTables& tables, const int32_t* k, size_t tokens, size_t channels, StripStates* states,
                  uint8_t* symbols, uint32_t* escapes, int32_t* points);

// Tokens of whole strips, of values `stride` apart, that are quantized without a trellis: what is quantized is (value -
// mean) factor. Where there is a unit, what they are decoded to, point unit + placed mean, is placed, perhaps where the
// values are.
struct PlainStrip {
  const float* values;
  size_t stride;
  size_t tokens;
  const float* means;
  float factor;
  const float* placed_means;
  float unit = 0;
  PlacedValues placed = {};
};
// FillStrip, PlainQuantize, StripSymbols and PlaceStrip in one pass. `k` has the values that are escapes, and all where
// the tables have low bits.
void PlainSymbols(const StripTables& tables, const PlainStrip& strip, int32_t* k, uint8_t* symbols, uint32_t* escapes);

namespace scalar {
void PlainSymbols(const StripTables& tables, const PlainStrip& strip, int32_t* k, uint8_t* symbols, uint32_t* escapes);
void TrellisQuantize(const float* y, size_t tokens, uint32_t* decisions, int32_t* k);
void PlainQuantize(const float* y, size_t tokens, int32_t* k);
void StripSymbols(const StripTables& tables, const int32_t* k, size_t tokens, size_t channels, StripStates* states,
                  uint8_t* symbols, uint32_t* escapes, int32_t* points);
}  // namespace scalar

}  // namespace kvcompress::simd
