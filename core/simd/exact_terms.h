#pragma once

#include <algorithm>
#include <cmath>

#include "core/simd/error_sums.h"

namespace kvcompress::simd {

// Whether the squares of the decoded values, which are a difference of these sums, are large enough to be left by it.
inline bool DecodedSquaresFollow(const ErrorSums& sums) {
  return sums.sum_squares - 2 * sums.sum_cross + sums.sum_error_squares >= sums.sum_squares / 16;
}

// The terms of ErrorSums in binary64, added up. Those of x and of its deviations are sums about `first`, one of the x:
// what is small beside x, as where all x are next to equal, is not lost. Nor are the squares of the decoded values
// where these are small beside x: what is left of the difference of the other sums would be their rounding, so
// sum_cross is made such that it is right.
struct ExactTerms {
  ErrorSums sums;  // of which `sum` and `sum_deviations` are of x - first and of its square
  double first = 0;
  double decoded_squares = 0;

  void Add(double x, double error) {
    if (sums.count++ == 0) first = x;
    const double shifted = x - first;
    sums.sum += shifted;
    sums.sum_deviations += shifted * shifted;
    sums.sum_squares += x * x;
    sums.sum_error_squares += error * error;
    sums.sum_abs_error += std::abs(error);
    // An infinite error would make NaN of a zero.
    if (std::isfinite(error)) sums.sum_cross += x * error;
    decoded_squares += (x - error) * (x - error);
    sums.max_abs_error = std::max(sums.max_abs_error, std::abs(error));
  }

  void AddTo(ErrorSums& total) const {
    if (sums.count == 0) return;
    ErrorSums own = sums;
    const auto n = static_cast<double>(own.count);
    own.sum_deviations = std::max(0.0, own.sum_deviations - own.sum * own.sum / n);
    own.sum += n * first;
    if (decoded_squares < own.sum_squares / 16) {
      own.sum_cross = (own.sum_squares + own.sum_error_squares - decoded_squares) / 2;
    }
    total.Merge(own);
  }
};

}  // namespace kvcompress::simd
