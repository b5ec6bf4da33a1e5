#pragma once

#include <cstddef>

#include "core/simd/rotary.h"

// Whether a run of tokens is better off with its rotary embedding undone: keys that turn have wider channels than those
// that were turned back.
namespace kvcompress {

// The sum over the channels of log2 of their variances over the first of the run's tokens. Alike on every CPU.
double LogVariances(const float* values, size_t tokens, size_t channels);

// Of a run of `values` whose LogVariances are these: it is turned back if that makes its channels narrower.
simd::RotaryGain TurnGain(double as_it_is, double turned_back, size_t channels, size_t values);

}  // namespace kvcompress
