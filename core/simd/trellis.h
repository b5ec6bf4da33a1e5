#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "core/simd/channel_rans.h"

// Dependent quantization (docs/format.md, "transform"): two quantizers, of which a machine of four states that follows
// the parity of the values says whose turn it is. Points are integers, in units of the step: the first quantizer has
// the even ones, 2 k for the value k, the second 0 and the odd ones, 2 k - sgn k.
//
// All targets give the same bits; `scalar` is the definition.
namespace kvcompress::simd {

// Points reach so far that binary32 has all of them.
inline constexpr int32_t kMaxPoint = (1 << 24) - 1;

constexpr int32_t PointOf(int32_t k, size_t quantizer) { return quantizer == 0 ? 2 * k : 2 * k - (k > 0) + (k < 0); }

// Tokens of a strip of kStripChannels channels, of values `stride` apart. What is quantized is (value - mean) factor,
// of magnitudes of at most 2^24 - 8. Where there is a unit, what the points become is placed, perhaps where the values
// are.
struct StripSpan {
  const float* values;
  size_t stride;
  size_t tokens;
  const float* means;
  float factor;
  Placing placing = {};
};

// What values are coded as: of each token kStripChannels symbols, and which channels are escapes. `k` has the values of
// tokens with escapes, and all where the tables have low bits.
struct CodedSymbols {
  uint8_t* symbols;
  uint32_t* escapes;
  int32_t* k;
};

// The values of the first quantizer alone whose points lie nearest.
void PlainSymbols(const StripTables& tables, const StripSpan& span, const CodedSymbols& out);

// The values whose points lie nearest in the sum of squares, from state 0 on, in two passes: the first goes from token
// to token and finds what the cheapest paths into each state cost, the second goes back along the cheapest of all. A
// strip may be some spans, which are passed one after the other, and back in the reverse order.
struct TrellisCosts {
  alignas(64) float of_state[4][kStripChannels];

  TrellisCosts() {
    for (size_t c = 0; c < kStripChannels; ++c) {
      of_state[0][c] = 0;
      of_state[1][c] = of_state[2][c] = of_state[3][c] = 1e30f;
    }
  }
};
// For each token and state, which channels' cheapest path comes from the second of the states before: 0 and 1 are those
// of 0 and 2, 2 and 3 those of 1 and 3.
using TrellisDecisions = std::array<uint32_t, 4>;
void TrellisForward(const StripSpan& span, TrellisCosts& costs, TrellisDecisions* decisions);

// The states of all channels, by their bits: a bit for each channel.
struct TrellisEnds {
  uint32_t high = 0;
  uint32_t low = 0;
};
// Those of the cheapest paths.
TrellisEnds CheapestEnds(const TrellisCosts& costs);
// From the states after a span to those before it.
void TrellisBack(const StripTables& tables, const StripSpan& span, const TrellisDecisions* decisions, TrellisEnds& ends,
                 const CodedSymbols& out);

namespace scalar {
void PlainSymbols(const StripTables& tables, const StripSpan& span, const CodedSymbols& out);
void TrellisForward(const StripSpan& span, TrellisCosts& costs, TrellisDecisions* decisions);
TrellisEnds CheapestEnds(const TrellisCosts& costs);
void TrellisBack(const StripTables& tables, const StripSpan& span, const TrellisDecisions* decisions, TrellisEnds& ends,
                 const CodedSymbols& out);
}  // namespace scalar

}  // namespace kvcompress::simd
