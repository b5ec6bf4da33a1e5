#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "core/simd/segment_values.h"
#include "core/simd/trellis.h"

namespace kvcompress::simd {

namespace scalar {
namespace {

float ToQuantize(const StripSpan& span, size_t token, size_t channel) {
  return (span.values[token * span.stride + channel] - span.means[channel]) * span.factor;
}

// What the values of a token are coded as; those of the channels in `odd_quantizers` are of the second quantizer.
void CodeToken(const StripTables& tables, const StripSpan& span, size_t token, const int32_t* k,
               uint32_t odd_quantizers, const CodedSymbols& out) {
  out.escapes[token] = 0;
  int32_t points[kStripChannels];
  for (size_t c = 0; c < kStripChannels; ++c) {
    const size_t quantizer = odd_quantizers >> c & 1;
    const int32_t high = k[c] >> tables.low_bits[c];
    const bool escape = std::abs(high) > tables[c].reach[quantizer];
    out.escapes[token] |= uint32_t{escape} << c;
    const uint8_t symbol = escape ? kEscape : SymbolOf(high);
    out.symbols[token * kStripChannels + c] = static_cast<uint8_t>(symbol | (quantizer != 0 ? kOddQuantizer : 0));
    points[c] = PointOf(k[c], quantizer);
  }
  if (out.escapes[token] != 0 || tables.has_low_bits) {
    std::copy_n(k, kStripChannels, out.k + token * kStripChannels);
  }
  const Placing& to = span.placing;
  if (to.unit != 0) PlaceStrip(points, 1, kStripChannels, {to.values.After(token), to.unit, to.means});
}

// Costs of a token, by the class of points modulo 4 that is taken: of the first quantizer 0 and 2, of the second 1 and
// 3 with 0 in place of -1. Returns the states of which the second way into them is cheaper, as bits.
uint32_t Step(float y, float (&cost)[4]) {
  const float a = std::fabs(y);
  const float u = a - 4 * std::nearbyint(a * 0.25f);  // from the nearest multiple of 4
  const float to0 = std::fabs(u);
  const float to2 = 2 - to0;
  const float to1 = 2 - std::fabs(u + 1);
  const float to3 = a < 1.5f ? a : 2 - std::fabs(u - 1);
  const float s0 = to0 * to0, s1 = to1 * to1, s2 = to2 * to2, s3 = to3 * to3;
  // Two ways into each state: the first, or the second where that is cheaper.
  const float ways[4][2] = {{cost[0] + s0, cost[1] + s2},
                            {cost[2] + s3, cost[3] + s1},
                            {cost[0] + s2, cost[1] + s0},
                            {cost[2] + s1, cost[3] + s3}};
  uint32_t seconds = 0;
  for (size_t s = 0; s < 4; ++s) {
    const bool second = ways[s][1] < ways[s][0];
    cost[s] = second ? ways[s][1] : ways[s][0];
    seconds |= uint32_t{second} << s;
  }
  return seconds;
}

// The value of this parity and quantizer that lies nearest.
int32_t ValueFor(float y, bool odd, bool second_quantizer) {
  const float a = std::fabs(y);
  const float shift = second_quantizer ? (odd ? -1.0f : 1.0f) : (odd ? -2.0f : 0.0f);
  auto value = 2 * static_cast<int32_t>(std::nearbyint((a + shift) * 0.25f)) + odd;
  if (second_quantizer && !odd && a < 1.5f) value = 0;
  return std::signbit(y) ? -value : value;
}

}  // namespace

void PlainSymbols(const StripTables& tables, const StripSpan& span, const CodedSymbols& out) {
  for (size_t t = 0; t < span.tokens; ++t) {
    int32_t k[kStripChannels];
    for (size_t c = 0; c < kStripChannels; ++c) {
      k[c] = static_cast<int32_t>(std::nearbyint(ToQuantize(span, t, c) * 0.5f));
    }
    CodeToken(tables, span, t, k, 0, out);
  }
}

void TrellisForward(const StripSpan& span, TrellisCosts& costs, TrellisDecisions* decisions) {
  for (size_t t = 0; t < span.tokens; ++t) {
    decisions[t] = {};
    for (size_t c = 0; c < kStripChannels; ++c) {
      float cost[4];
      for (size_t s = 0; s < 4; ++s) cost[s] = costs.of_state[s][c];
      const uint32_t seconds = Step(ToQuantize(span, t, c), cost);
      for (size_t s = 0; s < 4; ++s) {
        costs.of_state[s][c] = cost[s];
        decisions[t][s] |= (seconds >> s & 1) << c;
      }
    }
  }
}

TrellisEnds CheapestEnds(const TrellisCosts& costs) {
  TrellisEnds ends;
  for (size_t c = 0; c < kStripChannels; ++c) {
    const auto cost = [&](size_t state) { return costs.of_state[state][c]; };
    const bool is_high = std::min(cost(2), cost(3)) < std::min(cost(0), cost(1));
    const bool is_low = is_high ? cost(3) < cost(2) : cost(1) < cost(0);
    ends.high |= uint32_t{is_high} << c;
    ends.low |= uint32_t{is_low} << c;
  }
  return ends;
}

void TrellisBack(const StripTables& tables, const StripSpan& span, const TrellisDecisions* decisions, TrellisEnds& ends,
                 const CodedSymbols& out) {
  for (size_t t = span.tokens; t-- > 0;) {
    int32_t k[kStripChannels];
    const uint32_t quantizers = ends.low;  // states 0 and 2 follow 0 and 1, states 1 and 3 follow 2 and 3
    uint32_t seconds = 0;
    for (size_t c = 0; c < kStripChannels; ++c) {
      const uint32_t state = 2 * (ends.high >> c & 1) + (ends.low >> c & 1);
      const uint32_t second = decisions[t][state] >> c & 1;
      k[c] = ValueFor(ToQuantize(span, t, c), (state >> 1 ^ second) != 0, (quantizers >> c & 1) != 0);
      seconds |= second << c;
    }
    ends.high = quantizers;
    ends.low = seconds;
    CodeToken(tables, span, t, k, quantizers, out);
  }
}

}  // namespace scalar
}  // namespace kvcompress::simd
