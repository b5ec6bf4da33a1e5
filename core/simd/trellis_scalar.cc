#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>

#include "core/simd/segment_values.h"
#include "core/simd/trellis.h"

namespace kvcompress::simd::scalar {
namespace {

constexpr float kNever = 1e30f;

// Quantizes one channel. Costs of a token, by the class of points modulo 4 that is taken: of the first quantizer 0 and
// 2, of the second 1 and 3 with 0 in place of -1.
void QuantizeChannel(const float* y, size_t tokens, uint32_t* decisions, uint32_t channel, int32_t* k) {
  float cost[4] = {0, kNever, kNever, kNever};
  for (size_t t = 0; t < tokens; ++t) {
    const float a = std::fabs(y[t * kStripChannels]);
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
    for (size_t s = 0; s < 4; ++s) {
      const bool second = ways[s][1] < ways[s][0];
      cost[s] = second ? ways[s][1] : ways[s][0];
      decisions[4 * t + s] = (decisions[4 * t + s] & ~(1u << channel)) | uint32_t{second} << channel;
    }
  }
  const bool high = std::min(cost[2], cost[3]) < std::min(cost[0], cost[1]);
  uint32_t state = high ? 2 + (cost[3] < cost[2]) : (cost[1] < cost[0]);
  for (size_t t = tokens; t-- > 0;) {
    const uint32_t second = decisions[4 * t + state] >> channel & 1;
    // States 0 and 2 follow 0 and 1, states 1 and 3 follow 2 and 3.
    const uint32_t quantizer = state & 1;
    const bool odd = (state >> 1 ^ second) != 0;
    const float v = y[t * kStripChannels];
    const float a = std::fabs(v);
    const float shift = quantizer == 0 ? (odd ? -2.0f : 0.0f) : (odd ? -1.0f : 1.0f);
    auto value = 2 * static_cast<int32_t>(std::nearbyint((a + shift) * 0.25f)) + odd;
    if (quantizer != 0 && !odd && a < 1.5f) value = 0;
    k[t * kStripChannels] = std::signbit(v) ? -value : value;
    state = 2 * quantizer + second;
  }
}

}  // namespace

void TrellisQuantize(const float* y, size_t tokens, uint32_t* decisions, int32_t* k) {
  for (uint32_t c = 0; c < kStripChannels; ++c) QuantizeChannel(y + c, tokens, decisions, c, k + c);
}

void PlainQuantize(const float* y, size_t tokens, int32_t* k) {
  for (size_t i = 0; i < tokens * kStripChannels; ++i) k[i] = static_cast<int32_t>(std::nearbyint(y[i] * 0.5f));
}

void PlainSymbols(const StripTables& tables, const PlainStrip& strip, int32_t* k, uint8_t* symbols, uint32_t* escapes) {
  for (size_t t = 0; t < strip.tokens; ++t) {
    const size_t at = t * kStripChannels;
    float y[kStripChannels];
    int32_t points[kStripChannels];
    FillStrip(strip.values + t * strip.stride, strip.stride, 1, kStripChannels, strip.means, strip.factor, y);
    PlainQuantize(y, 1, k + at);
    scalar::StripSymbols(tables, k + at, 1, kStripChannels, nullptr, symbols + at, escapes + t, points);
    if (strip.unit == 0) continue;
    scalar::PlaceStrip(points, 1, kStripChannels, {strip.placed.After(t), strip.unit, strip.placed_means});
  }
}

void StripSymbols(const StripTables& tables, const int32_t* k, size_t tokens, size_t channels, StripStates* states,
                  uint8_t* symbols, uint32_t* escapes, int32_t* points) {
  for (size_t t = 0; t < tokens; ++t) {
    escapes[t] = 0;
    for (size_t c = 0; c < channels; ++c) {
      const size_t at = t * kStripChannels + c;
      const size_t quantizer = states != nullptr ? QuantizerOf((*states)[c]) : 0;
      const int32_t high = k[at] >> tables.low_bits[c];
      const bool escape = std::abs(high) > tables[c].reach[quantizer];
      escapes[t] |= uint32_t{escape} << c;
      const uint8_t symbol = escape ? kEscape : SymbolOf(high);
      symbols[at] = static_cast<uint8_t>(symbol | (quantizer != 0 ? kOddQuantizer : 0));
      if (points != nullptr) points[at] = PointOf(k[at], quantizer);
      if (states != nullptr) (*states)[c] = NextState((*states)[c], k[at] % 2 != 0);
    }
  }
}

}  // namespace kvcompress::simd::scalar
