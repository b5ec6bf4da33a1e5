#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "core/simd/rotary.h"

// Whether a run of tokens is better off with its rotary embedding undone: keys that turn have wider channels than those
// that were turned back.
namespace kvcompress {

// The sum over the channels of log2 of their variances. Alike on every CPU.
double LogVariances(const float* values, size_t tokens, size_t channels);

// Of a run of `values` whose LogVariances are these: it is turned back if that makes its channels narrower.
simd::RotaryGain TurnGain(double as_it_is, double turned_back, size_t channels, size_t values);

// Turns a run of `count` values back if that makes the channels of its first kTurnedTokens narrower. turn_back(at, n,
// values) is to turn n of the values, from `at` on, which are whole tokens.
inline constexpr size_t kTurnedTokens = 128;
template <class TurnBack>
simd::RotaryGain TurnBackIfNarrower(float* values, size_t count, size_t channels, TurnBack turn_back) {
  thread_local std::vector<float> turned;
  const size_t tokens = std::min(kTurnedTokens, count / channels);
  const size_t sample = tokens * channels;
  turned.assign(values, values + sample);
  turn_back(size_t{0}, sample, turned.data());
  const simd::RotaryGain gain =
      TurnGain(LogVariances(values, tokens, channels), LogVariances(turned.data(), tokens, channels), channels, count);
  if (gain.turned == 0) return gain;
  std::copy(turned.begin(), turned.end(), values);
  if (sample < count) turn_back(sample, count - sample, values + sample);
  return gain;
}

}  // namespace kvcompress
