#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "absl/status/status.h"

namespace kvcompress {

// The coordinates in which a group of heads is quantized.
struct Basis {
  std::vector<float> forward;  // [dim, dim], values of F16, a row for each coefficient, largest sigma first
  std::vector<float> inverse;
  std::vector<float> sigma;  // of the coefficients that `forward` gives
};

// Of a covariance C and a weight A of errors, [dim, dim] both; an empty weight is the identity. A is scaled to a trace
// of dim and mixed, 0.95 A + 0.05 I; with B = A^1/2 and the eigenvectors U of B C B, forward is U^T B and inverse
// B^-1 U, each rounded. Eigenvectors have a positive entry of largest magnitude.
Basis MakeBasis(std::span<const double> covariance, std::span<const double> weight, size_t dim);

// INVALID_ARGUMENT for a weight that is not finite, symmetric and positive semi-definite, to about 1e-4 of its largest
// entry, or whose trace is 0.
absl::Status CheckWeight(std::span<const double> weight, size_t dim);

// Bits a value that a Gaussian source with these variances takes where sum(scale_i D_i) / n of its errors D_i is
// `mean_squared_error`: 0 to all where it is no less than what there is (reverse water-filling; Cover, Thomas, ch. 10).
double GaussianBits(std::span<const double> variances, std::span<const double> scales, double mean_squared_error);

}  // namespace kvcompress
