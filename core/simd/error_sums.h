#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/base/dtype.h"
#include "core/simd/rotary.h"

namespace kvcompress {

// Sums over the values x of a run of a tensor and the errors e = x - decoded(x), from which every quality figure
// follows. Partial sums of blocks are merged in block order, so the totals do not depend on the number of threads.
struct ErrorSums {
  uint64_t count = 0;            // values that the sums cover: the finite ones of the original
  double sum = 0;                // of x
  double sum_squares = 0;        // of x^2
  double sum_deviations = 0;     // of (x - mean)^2, about the mean of these x
  double sum_error_squares = 0;  // of e^2
  double sum_abs_error = 0;      // of |e|
  double sum_cross = 0;          // of x e
  double max_abs_error = 0;      // of |e|
  // What changes from token to token. A channel is all values that differ only in their index on the seq axis; these
  // sums are about each channel's own means of x and of e. Tensors without tokens have none.
  uint64_t token_count = 0;           // values that they cover; 0: the tensor has no tokens
  double token_deviations = 0;        // of (x - mean of x)^2
  double token_error_deviations = 0;  // of (e - mean of e)^2
  double max_channel_constant = 0;    // the largest |mean of x| / standard deviation of x of a channel that varies
  // Not of errors, but of what the codec did with the values: of codecs that find out whether a rotary embedding is
  // better undone.
  simd::RotaryGain rotary = {};

  void Merge(const ErrorSums& other) {
    if (count > 0 && other.count > 0) {  // Chan, Golub, LeVeque 1983
      const auto n = static_cast<double>(count);
      const auto m = static_cast<double>(other.count);
      const double between = other.sum / m - sum / n;
      sum_deviations += between * between * (n * m / (n + m));
    }
    sum_deviations += other.sum_deviations;
    count += other.count;
    sum += other.sum;
    sum_squares += other.sum_squares;
    sum_error_squares += other.sum_error_squares;
    sum_abs_error += other.sum_abs_error;
    sum_cross += other.sum_cross;
    max_abs_error = std::max(max_abs_error, other.max_abs_error);
    token_count += other.token_count;
    token_deviations += other.token_deviations;
    token_error_deviations += other.token_error_deviations;
    max_channel_constant = std::max(max_channel_constant, other.max_channel_constant);
    rotary.Merge(other.rotary);
  }

  // Of values and errors that were multiplied by these, powers of two; not of the sums about tokens.
  void Unscale(double value, double error) {
    sum /= value;
    sum_squares /= value * value;
    sum_deviations /= value * value;
    sum_error_squares /= error * error;
    sum_abs_error /= error;
    sum_cross /= value * error;
    max_abs_error /= error;
  }
};

namespace simd {

// Adds to `sums` the error terms of `count` values of `dtype`, which is not opaque. A pair of equal bits has no error,
// whatever the bits are; values of `original` that are not finite are left out of the sums; a finite value that decodes
// to NaN or infinity has an infinite error, which `sum_cross` leaves out.
//
// Sums are made in lanes of binary32 that are moved to binary64 every few additions: they are exact to 1e-6 relative to
// the sum of the terms' magnitudes at worst, and to about 1e-8 over many values, also where a square leaves the range
// of binary32. sum_deviations is exact to 1e-3 at worst, and to about 1e-5, however small it is beside sum_squares. The
// squares of the decoded values, which are sum_squares - 2 sum_cross + sum_error_squares, are exact to 1e-5 where they
// are at least 2^-33 of sum_squares. Sums depend in the last digits on the instruction set and on how a
// run is cut, not on threads.
void MeasureErrors(DType dtype, const void* original, const void* decoded, size_t count, ErrorSums& sums);

namespace scalar {
void MeasureErrors(DType dtype, const void* original, const void* decoded, size_t count, ErrorSums& sums);
}  // namespace scalar

}  // namespace simd
}  // namespace kvcompress
