#include "core/calibration/basis.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "core/base/half.h"
#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

using ::kvcompress::testing::IsOk;
using ::kvcompress::testing::StatusIs;
using ::testing::HasSubstr;
using Matrix = std::vector<double>;

Matrix Product(const Matrix& a, const Matrix& b, size_t dim) {
  Matrix product(dim * dim);
  for (size_t i = 0; i < dim; ++i) {
    for (size_t j = 0; j < dim; ++j) {
      for (size_t k = 0; k < dim; ++k) product[i * dim + j] += a[i * dim + k] * b[k * dim + j];
    }
  }
  return product;
}

Matrix Transpose(const Matrix& a, size_t dim) {
  Matrix transpose(dim * dim);
  for (size_t i = 0; i < dim; ++i) {
    for (size_t j = 0; j < dim; ++j) transpose[i * dim + j] = a[j * dim + i];
  }
  return transpose;
}

Matrix Double(const std::vector<float>& a) { return {a.begin(), a.end()}; }

// Positive definite.
Matrix MakeMoments(size_t dim, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  Matrix factors(dim * dim);
  for (size_t i = 0; i < factors.size(); ++i) factors[i] = normal(random) / static_cast<double>(1 + i % dim);
  return Product(factors, Transpose(factors, dim), dim);
}

void ExpectIdentity(const Matrix& a, size_t dim, double tolerance) {
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_NEAR(a[i], i % (dim + 1) == 0 ? 1 : 0, tolerance) << i;
  }
}

// The coefficients do not correlate, and sigma is their deviation.
void ExpectPrincipalAxes(const Basis& basis, const Matrix& covariance, size_t dim) {
  const Matrix forward = Double(basis.forward);
  const Matrix rotated = Product(Product(forward, covariance, dim), Transpose(forward, dim), dim);
  for (size_t i = 0; i < dim; ++i) {
    EXPECT_NEAR(rotated[i * dim + i], basis.sigma[i] * basis.sigma[i], 1e-5 * rotated[0]);
    for (size_t j = 0; j < i; ++j) EXPECT_NEAR(rotated[i * dim + j], 0, 2e-3 * rotated[0]);
    EXPECT_LE(basis.sigma[i], basis.sigma[i == 0 ? 0 : i - 1] * 1.01);
  }
}

TEST(BasisTest, WithoutWeightItIsARotationToThePrincipalAxes) {
  constexpr size_t kDim = 24;
  const Matrix covariance = MakeMoments(kDim, 1);
  const Basis basis = MakeBasis(covariance, {}, kDim);
  EXPECT_EQ(Transpose(Double(basis.forward), kDim), Double(basis.inverse));
  ExpectIdentity(Product(Double(basis.forward), Double(basis.inverse), kDim), kDim, 2e-3);
  ExpectPrincipalAxes(basis, covariance, kDim);
  for (size_t i = 0; i < kDim; ++i) {
    float largest = 0;
    for (size_t j = 0; j < kDim; ++j) {
      const float entry = basis.forward[i * kDim + j];
      EXPECT_EQ(entry, RoundTo(DType::kF16, entry));
      if (std::abs(entry) > std::abs(largest)) largest = entry;
    }
    EXPECT_GT(largest, 0) << i;
  }
}

TEST(BasisTest, WithAWeightErrorsOfCoefficientsCostTheSame) {
  constexpr size_t kDim = 16;
  const Matrix covariance = MakeMoments(kDim, 2);
  Matrix weight = MakeMoments(kDim, 3);
  const Basis basis = MakeBasis(covariance, weight, kDim);
  ExpectIdentity(Product(Double(basis.forward), Double(basis.inverse), kDim), kDim, 5e-3);
  ExpectPrincipalAxes(basis, covariance, kDim);
  double trace = 0;
  for (size_t i = 0; i < kDim; ++i) trace += weight[i * (kDim + 1)];
  for (double& entry : weight) entry *= 0.95 * kDim / trace;
  for (size_t i = 0; i < kDim; ++i) weight[i * (kDim + 1)] += 0.05;
  // An error e of the coefficients costs e^T (inverse^T A inverse) e.
  const Matrix inverse = Double(basis.inverse);
  ExpectIdentity(Product(Product(Transpose(inverse, kDim), weight, kDim), inverse, kDim), kDim, 1e-2);
}

TEST(BasisTest, ChannelsThatDoNotChangeHaveASigmaAboveZero) {
  const Basis still = MakeBasis(Matrix(4), {}, 2);
  EXPECT_THAT(still.sigma, ::testing::Each(::testing::Gt(0.0f)));
  const Basis one = MakeBasis(Matrix{4, 0, 0, 0}, {}, 2);
  EXPECT_FLOAT_EQ(one.sigma[0], 2);
  EXPECT_FLOAT_EQ(one.sigma[1], 0x1p-19f);
}

TEST(WeightTest, WhatIsNoWeightIsRefused) {
  EXPECT_THAT(CheckWeight(MakeMoments(8, 1), 8), IsOk());
  EXPECT_THAT(CheckWeight(Matrix{1, 1, 1, 1}, 2), IsOk());
  const auto refused = [](const Matrix& weight, const std::string& why) {
    EXPECT_THAT(CheckWeight(weight, 2), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why)));
  };
  refused({1, 0.5, 0, 1}, "not symmetric");
  refused({1, 2, 2, 1}, "not positive semi-definite: eigenvalue -1");
  refused({0, 0, 0, 0}, "trace");
  refused({std::numeric_limits<double>::infinity(), 0, 0, 1}, "NaN or infinity");
}

TEST(GaussianBitsTest, ItIsTheBoundOfRateDistortionTheory) {
  const std::vector<double> ones(3, 1.0);
  // A bit for each halving of the error's deviation.
  EXPECT_NEAR(GaussianBits(std::vector<double>{16, 16, 16}, ones, 1), 2, 1e-12);
  // The source that is below the level is left out: its whole variance is error.
  EXPECT_NEAR(GaussianBits(std::vector<double>{16, 4, 0.5}, ones, (1 + 1 + 0.5) / 3), (2 + 1) / 3.0, 1e-9);
  EXPECT_EQ(GaussianBits(std::vector<double>{16, 4, 1}, ones, 7), 0);
  EXPECT_EQ(GaussianBits(std::vector<double>{0, 0, 0}, ones, 1), 0);
  // An error that counts four times is two times as small in its deviation: a bit more.
  EXPECT_NEAR(GaussianBits(std::vector<double>{16, 16, 16}, std::vector<double>(3, 4.0), 1), 3, 1e-12);
}

}  // namespace
}  // namespace kvcompress
