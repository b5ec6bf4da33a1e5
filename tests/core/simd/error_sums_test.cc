#include "core/simd/error_sums.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_format.h"
#include "core/base/half.h"
#include "tests/core/simd/guarded.h"
#include "tests/core/simd/with_target.h"
#include "tests/testing/values.h"

namespace kvcompress::simd {
namespace {

using ::kvcompress::testing::Distribution;
using ::kvcompress::testing::Guarded;
using ::kvcompress::testing::TargetAndDTypeName;
using ::kvcompress::testing::UsableTargets;
using ::kvcompress::testing::WithTarget;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The sums in extended precision, with the magnitudes of the terms that may cancel.
struct Exact {
  long double sum = 0, abs_sum = 0, squares = 0, deviations = 0, error_squares = 0, abs_error = 0, cross = 0,
              abs_cross = 0;
  double max_error = 0;
};

Exact Measure(DType dtype, const std::vector<std::byte>& x, const std::vector<std::byte>& y, size_t count) {
  Exact exact;
  for (size_t i = 0; i < count; ++i) {
    const long double value = LoadAsF32(dtype, x.data(), i);
    const long double error = value - static_cast<long double>(LoadAsF32(dtype, y.data(), i));
    exact.sum += value;
    exact.abs_sum += std::abs(value);
    exact.squares += value * value;
    exact.error_squares += error * error;
    exact.abs_error += std::abs(error);
    exact.cross += value * error;
    exact.abs_cross += std::abs(value * error);
    exact.max_error = std::fmax(exact.max_error, static_cast<double>(std::abs(error)));
  }
  for (size_t i = 0; i < count; ++i) {
    const long double deviation = LoadAsF32(dtype, x.data(), i) - exact.sum / static_cast<long double>(count);
    exact.deviations += deviation * deviation;
  }
  return exact;
}

class ErrorSumsTest : public ::testing::TestWithParam<std::tuple<int64_t, DType>> {
 protected:
  DType dtype() const { return std::get<1>(GetParam()); }

  void ExpectExact(const std::vector<std::byte>& x, const std::vector<std::byte>& y, size_t count) {
    SCOPED_TRACE(count);
    const Exact want = Measure(dtype(), x, y, count);
    const Guarded original(x.data(), count * DTypeSize(dtype()), Guarded::Against::kPageAfter);
    const Guarded decoded(y.data(), count * DTypeSize(dtype()), Guarded::Against::kPageAfter);
    ErrorSums got;
    MeasureErrors(dtype(), original.data(), decoded.data(), count, got);
    const auto near = [](double value, long double exact, long double magnitude) {
      constexpr long double kRelative = 5e-7L;
      EXPECT_LE(std::abs(static_cast<long double>(value) - exact), kRelative * magnitude);
    };
    EXPECT_EQ(got.count, count);
    near(got.sum, want.sum, want.abs_sum);
    near(got.sum_squares, want.squares, want.squares);
    EXPECT_LE(std::abs(static_cast<long double>(got.sum_deviations) - want.deviations), 1e-3L * want.deviations);
    near(got.sum_error_squares, want.error_squares, want.error_squares);
    near(got.sum_abs_error, want.abs_error, want.abs_error);
    near(got.sum_cross, want.cross, want.abs_cross);
    near(got.max_abs_error, want.max_error, want.max_error);
  }

  // `x` with a relative error of about `relative`.
  std::vector<std::byte> Disturb(const std::vector<std::byte>& x, float relative) const {
    std::vector<std::byte> y = x;
    std::mt19937 random(17);
    for (size_t i = 0; i < x.size() / DTypeSize(dtype()); ++i) {
      const float value = LoadAsF32(dtype(), x.data(), i);
      const float top = MaxFinite(dtype());
      const float disturbed = value * (1 + relative * testing::Bell(random));
      StoreFromF32(dtype(), std::fmin(std::fmax(disturbed, -top), top), y.data(), i);
    }
    return y;
  }

 private:
  const WithTarget with_{std::get<0>(GetParam())};
};

TEST_P(ErrorSumsTest, AgreesWithExtendedPrecision) {
  for (const Distribution distribution : testing::kAllDistributions) {
    const auto x = testing::MakeValues(dtype(), 5000, distribution);
    const auto y = Disturb(x, 0.05f);
    for (const size_t count : {0, 1, 2, 15, 16, 17, 300, 1023, 1024, 1025, 2048, 4999, 5000}) ExpectExact(x, y, count);
  }
}

// Of values next to equal the squares tell nothing of the deviations.
TEST_P(ErrorSumsTest, DeviationsHoldBesideAnyMean) {
  for (const float mean : {0.0f, 3.3f, -1000.0f}) {
    for (const float deviation : {0.0f, 0x1p-20f, 0x1p-12f, 0x1p-6f, 0x1p-4f, 1.0f}) {
      SCOPED_TRACE(absl::StrFormat("%g of %g", deviation, mean));
      auto x = testing::MakeValues(dtype(), 5000, Distribution::kGaussian);
      for (size_t i = 0; i < 5000; ++i) {
        StoreFromF32(dtype(), mean + deviation * LoadAsF32(dtype(), x.data(), i), x.data(), i);
      }
      for (const size_t count : {1, 64, 1024, 5000}) ExpectExact(x, Disturb(x, 0.01f), count);
    }
  }
}

TEST_P(ErrorSumsTest, EqualValuesHaveNoDeviations) {
  std::vector<std::byte> x(5000 * DTypeSize(dtype()));
  for (size_t i = 0; i < 5000; ++i) StoreFromF32(dtype(), 3.3f, x.data(), i);
  ErrorSums sums;
  MeasureErrors(dtype(), x.data(), Disturb(x, 0.01f).data(), 5000, sums);
  EXPECT_EQ(sums.sum_deviations, 0);
}

// What is left of the difference of x^2 and x e where values decode to much smaller ones.
TEST_P(ErrorSumsTest, SquaresOfDecodedValuesFollowHoweverSmallTheyAre) {
  constexpr size_t kCount = 50'000;
  auto gaussian = testing::MakeValues(dtype(), kCount, Distribution::kGaussian);
  auto constant = gaussian;  // where all sums round the same way
  for (size_t i = 0; i < kCount; ++i) StoreFromF32(dtype(), 3.296875f, constant.data(), i);
  for (const auto* x : {&gaussian, &constant}) {
    for (const float limit : {1.0f, 0.5f, 0.1f, 0x1p-6f, 0x1p-10f, 0x1.2d5b3p-14f, 0x1.9ab3c4p-15f}) {
      SCOPED_TRACE(limit);
      auto y = *x;
      for (size_t i = 0; i < kCount; ++i) {
        StoreFromF32(dtype(), std::fmin(std::fmax(LoadAsF32(dtype(), x->data(), i), -limit), limit), y.data(), i);
      }
      for (const size_t count : {size_t{300}, size_t{1000}, size_t{5000}, kCount}) {
        long double decoded_squares = 0;
        for (size_t i = 0; i < count; ++i) {
          const long double decoded = LoadAsF32(dtype(), y.data(), i);
          decoded_squares += decoded * decoded;
        }
        ErrorSums sums;
        MeasureErrors(dtype(), x->data(), y.data(), count, sums);
        const double got = sums.sum_squares - 2 * sums.sum_cross + sums.sum_error_squares;
        EXPECT_NEAR(static_cast<double>(got / decoded_squares), 1, 1e-5) << count;
      }
    }
  }
}

// Dtypes with values whose squares leave the range of binary32.
class WideErrorSumsTest : public ErrorSumsTest {};

TEST_P(WideErrorSumsTest, HoldsWhereSquaresLeaveTheRangeOfBinary32) {
  for (const float factor : {0x1p-120f, 0x1p-90f, 0x1p-60f, 0x1p-40f, 0x1p40f, 0x1p60f, 0x1p100f}) {
    auto x = testing::MakeValues(dtype(), 3000, Distribution::kGaussian);
    for (size_t i = 0; i < 3000; ++i) StoreFromF32(dtype(), LoadAsF32(dtype(), x.data(), i) * factor, x.data(), i);
    ExpectExact(x, Disturb(x, 0.05f), 3000);
  }
  // Large values that are exact beside tiny ones that are not: the errors alone are out of range.
  auto x = testing::MakeValues(dtype(), 2048, Distribution::kGaussian);
  for (size_t i = 0; i < 2048; i += 3) StoreFromF32(dtype(), 0x1p-100f, x.data(), i);
  auto y = x;
  for (size_t i = 0; i < 2048; i += 3) StoreFromF32(dtype(), 0x1.8p-100f, y.data(), i);
  ExpectExact(x, y, 2048);
}

TEST_P(ErrorSumsTest, EqualBitsHaveNoErrorAndOnlyFiniteOriginalsCount) {
  const auto bits = testing::MakeBits(4096 * DTypeSize(dtype()), 23);
  uint64_t finite = 0;
  for (size_t i = 0; i < 4096; ++i) finite += std::isfinite(LoadAsF32(dtype(), bits.data(), i));
  ASSERT_LT(finite, 4096u);
  ErrorSums sums;
  MeasureErrors(dtype(), bits.data(), bits.data(), 4096, sums);
  EXPECT_EQ(sums.count, finite);
  EXPECT_EQ(sums.sum_error_squares, 0);
  EXPECT_EQ(sums.sum_abs_error, 0);
  EXPECT_EQ(sums.sum_cross, 0);
  EXPECT_EQ(sums.max_abs_error, 0);
  EXPECT_TRUE(std::isfinite(sums.sum));
}

TEST_P(ErrorSumsTest, AFiniteValueThatDecodesToNoNumberHasAnInfiniteError) {
  const auto x = testing::MakeValues(dtype(), 2048, Distribution::kGaussian);
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    for (const size_t at : {0, 1, 1000, 1023, 1024, 2047}) {
      auto y = x;
      StoreFromF32(dtype(), bad, y.data(), at);
      ErrorSums sums;
      MeasureErrors(dtype(), x.data(), y.data(), 2048, sums);
      EXPECT_EQ(sums.count, 2048u);
      EXPECT_EQ(sums.sum_error_squares, kInfinity);
      EXPECT_EQ(sums.sum_abs_error, kInfinity);
      EXPECT_EQ(sums.max_abs_error, kInfinity);
      EXPECT_EQ(sums.sum_cross, 0);  // all other pairs are equal
      auto z = x;
      StoreFromF32(dtype(), bad, z.data(), at);
      ErrorSums without;
      MeasureErrors(dtype(), z.data(), x.data(), 2048, without);
      EXPECT_EQ(without.count, 2047u);
      EXPECT_EQ(without.max_abs_error, 0);
    }
  }
}

// Stretches that binary32 holds about 0, about another value, or not at all, and values that do not count.
TEST_P(ErrorSumsTest, AnyMixtureAgreesWithTheDefinition) {
  constexpr size_t kCount = 20'000;
  std::mt19937 random(29);
  for (int round = 0; round < 20; ++round) {
    SCOPED_TRACE(round);
    std::vector<std::byte> x(kCount * DTypeSize(dtype())), y(x.size());
    for (size_t i = 0; i < kCount;) {
      const size_t end = std::min(kCount, i + 1 + random() % 3000);
      const float mean = std::vector<float>{0, 0, 3.3f, -1000, 0x1p-16f}[random() % 5];
      const float deviation = std::vector<float>{0, 0x1p-22f, 0.01f, 1, 100}[random() % 5];
      const float shrink = std::vector<float>{1, 1, 0.9f, 0x1p-7f}[random() % 4];
      const unsigned odd_every = std::vector<unsigned>{0, 0, 5, 500}[random() % 4];
      const float odd = std::vector<float>{std::numeric_limits<float>::quiet_NaN(),
                                           -std::numeric_limits<float>::infinity()}[random() % 2];
      for (; i < end; ++i) {
        const float value = mean + deviation * testing::Bell(random);
        const bool is_odd = odd_every > 0 && random() % odd_every == 0;
        StoreFromF32(dtype(), is_odd ? odd : value, x.data(), i);
        StoreFromF32(dtype(), is_odd && random() % 2 == 0 ? odd : value * shrink, y.data(), i);
      }
    }
    ErrorSums want, got;
    scalar::MeasureErrors(dtype(), x.data(), y.data(), kCount, want);
    MeasureErrors(dtype(), x.data(), y.data(), kCount, got);
    EXPECT_EQ(got.count, want.count);
    EXPECT_NEAR(got.max_abs_error, want.max_abs_error, 1e-7 * want.max_abs_error);
    constexpr double kRelative = 5e-7;
    const auto n = static_cast<double>(want.count);
    EXPECT_NEAR(got.sum, want.sum, kRelative * std::sqrt(n * want.sum_squares));
    EXPECT_NEAR(got.sum_squares, want.sum_squares, kRelative * want.sum_squares);
    EXPECT_NEAR(got.sum_deviations, want.sum_deviations, 1e-5 * want.sum_deviations);
    EXPECT_NEAR(got.sum_error_squares, want.sum_error_squares, kRelative * want.sum_error_squares);
    EXPECT_NEAR(got.sum_abs_error, want.sum_abs_error, kRelative * want.sum_abs_error);
    EXPECT_NEAR(got.sum_cross, want.sum_cross, kRelative * std::sqrt(want.sum_squares * want.sum_error_squares));
  }
}

TEST_P(ErrorSumsTest, AddsToWhatIsThere) {
  const auto x = testing::MakeValues(dtype(), 1500, Distribution::kGaussian);
  const auto y = Disturb(x, 0.1f);
  ErrorSums once, twice;
  MeasureErrors(dtype(), x.data(), y.data(), 1500, once);
  MeasureErrors(dtype(), x.data(), y.data(), 1500, twice);
  MeasureErrors(dtype(), x.data(), y.data(), 1500, twice);
  EXPECT_EQ(twice.count, 2 * once.count);
  EXPECT_NEAR(twice.sum_squares, 2 * once.sum_squares, 1e-12 * once.sum_squares);
  EXPECT_EQ(twice.max_abs_error, once.max_abs_error);
}

INSTANTIATE_TEST_SUITE_P(All, ErrorSumsTest,
                         ::testing::Combine(::testing::ValuesIn(UsableTargets()),
                                            ::testing::Values(DType::kF16, DType::kBF16, DType::kF32)),
                         TargetAndDTypeName);
INSTANTIATE_TEST_SUITE_P(All, WideErrorSumsTest,
                         ::testing::Combine(::testing::ValuesIn(UsableTargets()),
                                            ::testing::Values(DType::kBF16, DType::kF32)),
                         TargetAndDTypeName);

TEST(ErrorSums, MergeAdds) {
  ErrorSums a = {.count = 1,
                 .sum = 2,
                 .sum_squares = 3,
                 .sum_deviations = 8,
                 .sum_error_squares = 4,
                 .sum_abs_error = 5,
                 .sum_cross = 6,
                 .max_abs_error = 7,
                 .rotary = {.values = 3, .turned = 2, .bits = 1.5}};
  const ErrorSums b = {.count = 10,
                       .sum = 42,
                       .sum_squares = 30,
                       .sum_deviations = 80,
                       .sum_error_squares = 40,
                       .sum_abs_error = 50,
                       .sum_cross = 60,
                       .max_abs_error = 5,
                       .rotary = {.values = 4, .turned = 4, .bits = 2}};
  a.Merge(b);
  EXPECT_EQ(a.rotary, (RotaryGain{.values = 7, .turned = 6, .bits = 3.5}));
  EXPECT_EQ(a.count, 11u);
  EXPECT_EQ(a.sum, 44);
  EXPECT_EQ(a.sum_squares, 33);
  EXPECT_NEAR(a.sum_deviations, 8 + 80 + 2.2 * 2.2 * 10 / 11, 1e-12);  // the means are 2 and 4.2
  EXPECT_EQ(a.sum_error_squares, 44);
  EXPECT_EQ(a.sum_abs_error, 55);
  EXPECT_EQ(a.sum_cross, 66);
  EXPECT_EQ(a.max_abs_error, 7);
}

}  // namespace
}  // namespace kvcompress::simd
