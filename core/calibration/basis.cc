#include "core/calibration/basis.h"

#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
#include "core/base/half.h"

namespace kvcompress {
namespace {

using Eigen::Index;
using Eigen::MatrixXd;
using Eigen::VectorXd;
using Matrix = Eigen::Map<const Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>;
using Solver = Eigen::SelfAdjointEigenSolver<MatrixXd>;

constexpr double kWeightPart = 0.95;  // the rest is the identity
constexpr double kTolerance = 1e-4;
// Of coefficients that do not change: sigma must be above 0.
constexpr double kLeastRelative = 0x1p-20;
constexpr double kLeast = 0x1p-100;

MatrixXd Symmetric(std::span<const double> values, size_t dim) {
  const Matrix matrix(values.data(), static_cast<Index>(dim), static_cast<Index>(dim));
  return 0.5 * (matrix + matrix.transpose());
}

// By falling eigenvalues, signs fixed.
MatrixXd Eigenvectors(const Solver& solver) {
  MatrixXd vectors = solver.eigenvectors().rowwise().reverse();
  for (Index i = 0; i < vectors.cols(); ++i) {
    Index largest = 0;
    vectors.col(i).cwiseAbs().maxCoeff(&largest);
    if (vectors(largest, i) < 0) vectors.col(i) *= -1;
  }
  return vectors;
}

// Rounds `matrix` to values of F16, and returns them row by row.
std::vector<float> ToF16(MatrixXd& matrix) {
  std::vector<float> rounded;
  rounded.reserve(static_cast<size_t>(matrix.size()));
  for (Index i = 0; i < matrix.rows(); ++i) {
    for (Index j = 0; j < matrix.cols(); ++j) {
      rounded.push_back(RoundTo(DType::kF16, static_cast<float>(matrix(i, j))));
      matrix(i, j) = rounded.back();
    }
  }
  return rounded;
}

}  // namespace

Basis MakeBasis(std::span<const double> covariance, std::span<const double> weight, size_t dim) {
  const MatrixXd c = Symmetric(covariance, dim);
  Basis basis;
  MatrixXd forward;
  MatrixXd inverse;
  if (weight.empty()) {
    forward = Eigenvectors(Solver(c)).transpose();
    basis.forward = ToF16(forward);
    inverse = forward.transpose();
  } else {
    MatrixXd a = Symmetric(weight, dim);
    a *= kWeightPart * static_cast<double>(dim) / a.trace();
    a.diagonal().array() += 1 - kWeightPart;
    const Solver root(a);
    const VectorXd roots = root.eigenvalues().cwiseMax(0.5 * (1 - kWeightPart)).cwiseSqrt();
    const MatrixXd& v = root.eigenvectors();
    const MatrixXd b = v * roots.asDiagonal() * v.transpose();
    const MatrixXd u = Eigenvectors(Solver(b * c * b));
    forward = u.transpose() * b;
    inverse = v * roots.cwiseInverse().asDiagonal() * v.transpose() * u;
    basis.forward = ToF16(forward);
  }
  basis.inverse = ToF16(inverse);
  const VectorXd sigma = (forward * c).cwiseProduct(forward).rowwise().sum().cwiseMax(0).cwiseSqrt();
  const double least = std::max(kLeast, kLeastRelative * sigma.maxCoeff());
  for (const double value : sigma) basis.sigma.push_back(static_cast<float>(std::max(value, least)));
  return basis;
}

absl::Status CheckWeight(std::span<const double> weight, size_t dim) {
  const Matrix matrix(weight.data(), static_cast<Index>(dim), static_cast<Index>(dim));
  if (!matrix.allFinite()) return absl::InvalidArgumentError("the weight has NaN or infinity");
  const double largest = matrix.cwiseAbs().maxCoeff();
  if (!(matrix.trace() > 0)) return absl::InvalidArgumentError("the weight's trace is not above 0");
  if ((matrix - matrix.transpose()).cwiseAbs().maxCoeff() > kTolerance * largest) {
    return absl::InvalidArgumentError("the weight is not symmetric");
  }
  const double least = Solver(Symmetric(weight, dim), Eigen::EigenvaluesOnly).eigenvalues().minCoeff();
  if (least >= -kTolerance * largest) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("the weight is not positive semi-definite: eigenvalue %g", least));
}

double GaussianBits(std::span<const double> variances, std::span<const double> scales, double mean_squared_error) {
  const auto count = static_cast<double>(variances.size());
  const auto error_at = [&](double level) {
    double sum = 0;
    for (size_t i = 0; i < variances.size(); ++i) sum += scales[i] * std::min(level, variances[i]);
    return sum / count;
  };
  double high = *std::max_element(variances.begin(), variances.end());
  if (!(mean_squared_error > 0) || error_at(high) <= mean_squared_error) return 0;
  double low = 0;
  for (int i = 0; i < 200; ++i) {
    const double level = 0.5 * (low + high);
    (error_at(level) > mean_squared_error ? high : low) = level;
  }
  double bits = 0;
  for (const double variance : variances) bits += 0.5 * std::log2(std::max(1.0, variance / high));
  return bits / count;
}

}  // namespace kvcompress
