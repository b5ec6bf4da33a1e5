#include "core/quality/quality.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace kvcompress {
namespace {

ErrorSums SumsOf(const std::vector<double>& x, const std::vector<double>& decoded) {
  ErrorSums sums;
  const double mean = std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    sums.sum_deviations += (x[i] - mean) * (x[i] - mean);
    const double e = x[i] - decoded[i];
    ++sums.count;
    sums.sum += x[i];
    sums.sum_squares += x[i] * x[i];
    sums.sum_error_squares += e * e;
    sums.sum_abs_error += std::fabs(e);
    sums.sum_cross += x[i] * e;
    sums.max_abs_error = std::max(sums.max_abs_error, std::fabs(e));
  }
  return sums;
}

TEST(QualityTest, FiguresOfAKnownPair) {
  // Mean 2.5, variance 1.25; errors 0.1, -0.1, 0.3, -0.1.
  const std::vector<double> x = {1, 2, 3, 4};
  const std::vector<double> y = {0.9, 2.1, 2.7, 4.1};
  const Quality quality = QualityOf(SumsOf(x, y));
  EXPECT_NEAR(quality.rmse, std::sqrt(0.12 / 4), 1e-12);
  EXPECT_NEAR(quality.mean_abs_error, 0.15, 1e-12);
  EXPECT_NEAR(quality.max_error, 0.3, 1e-12);
  ASSERT_TRUE(quality.snr_db.has_value());
  EXPECT_NEAR(*quality.snr_db, 10 * std::log10(1.25 / 0.03), 1e-9);
  const double cross = 1 * 0.9 + 2 * 2.1 + 3 * 2.7 + 4 * 4.1;
  const double norms = std::sqrt(30.0) * std::sqrt(0.81 + 4.41 + 7.29 + 16.81);
  EXPECT_NEAR(quality.cosine_similarity, cross / norms, 1e-12);
}

TEST(QualityTest, NoErrorHasNoFiniteSnr) {
  const Quality quality = QualityOf(SumsOf({1, 2}, {1, 2}));
  EXPECT_FALSE(quality.snr_db.has_value());
  EXPECT_EQ(quality.rmse, 0);
  EXPECT_EQ(quality.cosine_similarity, 1);
  EXPECT_EQ(LevelOf(quality), QualityLevel::kExcellent);
  EXPECT_TRUE(CheckThresholds(quality).empty());
}

TEST(QualityTest, NoErrorHasACosineOfExactlyOne) {
  for (int i = 1; i < 1000; ++i) {
    const double x = 1.0 / i;
    EXPECT_EQ(QualityOf(SumsOf({x}, {x})).cosine_similarity, 1) << i;
  }
}

TEST(QualityTest, CosineIsZeroWhereANormIs) {
  EXPECT_EQ(QualityOf(SumsOf({0, 0}, {0, 0})).cosine_similarity, 0);
  EXPECT_EQ(QualityOf(SumsOf({1, 2}, {0, 0})).cosine_similarity, 0);
}

TEST(QualityTest, CosineIsZeroWhereSumsCannotTellIt) {
  EXPECT_NEAR(QualityOf(SumsOf({3e3, 1e3}, {1, 1})).cosine_similarity, 4 / std::sqrt(20), 1e-6);
  EXPECT_EQ(QualityOf(SumsOf({3e10, 1e10}, {1, 1})).cosine_similarity, 0);
  // By rounding the sums say that what is left is as long as the root of 2^-40 of the whole, and in its direction.
  ErrorSums sums{
      .count = 1, .sum = 1, .sum_squares = 1, .sum_error_squares = 1, .sum_abs_error = 1, .max_abs_error = 1};
  sums.sum_cross = 1 - 0x1p-41;
  EXPECT_EQ(QualityOf(sums).cosine_similarity, 0);
}

TEST(QualityTest, ConstantTensorWithAnErrorHasTheLowestSnr) {
  EXPECT_EQ(QualityOf(SumsOf({2, 2}, {1, 1})).snr_db, kMinSnrDb);
}

TEST(QualityTest, AnInfiniteErrorViolatesEverything) {
  ErrorSums sums = SumsOf({1, 2, 3}, {1, 2, 3.1});
  sums.max_abs_error = sums.sum_error_squares = sums.sum_abs_error = std::numeric_limits<double>::infinity();
  const Quality quality = QualityOf(sums);
  EXPECT_EQ(LevelOf(quality), QualityLevel::kPoor);
  EXPECT_EQ(CheckThresholds(quality).size(), 4);
}

TEST(QualityTest, LevelsNeedBothFigures) {
  EXPECT_EQ(LevelOf(0.009, 40.1), QualityLevel::kExcellent);
  EXPECT_EQ(LevelOf(0.01, 40.1), QualityLevel::kGood);
  EXPECT_EQ(LevelOf(0.009, 40.0), QualityLevel::kGood);
  EXPECT_EQ(LevelOf(0.049, 30.1), QualityLevel::kGood);
  EXPECT_EQ(LevelOf(0.05, 99.0), QualityLevel::kAcceptable);
  EXPECT_EQ(LevelOf(0.099, 18.1), QualityLevel::kAcceptable);
  EXPECT_EQ(LevelOf(0.10, 18.1), QualityLevel::kPoor);
  EXPECT_EQ(LevelOf(0.001, 18.0), QualityLevel::kPoor);
}

TEST(QualityTest, ViolationTextsAreTheReferences) {
  const Quality bad{.rmse = 0.1234, .mean_abs_error = 0.1, .snr_db = 17.1, .cosine_similarity = 0.98, .max_error = 0.6};
  std::vector<std::string> texts;
  for (const Violation& violation : CheckThresholds(bad)) texts.push_back(violation.text);
  EXPECT_THAT(texts, ::testing::ElementsAre("RMSE 0.1234 > 0.1000", "MaxError 0.6000 > 0.5000",
                                            "CosineSim 0.9800 < 0.9900", "SNR 17.10dB < 18.00dB"));
  const Quality at_the_limit{
      .rmse = 0.10, .mean_abs_error = 0.1, .snr_db = 18.0, .cosine_similarity = 0.99, .max_error = 0.50};
  EXPECT_TRUE(CheckThresholds(at_the_limit).empty());
}

TEST(QualityMergerTest, MeansAreUnweightedOverTensors) {
  const ErrorSums small = SumsOf({1, 2}, {1.5, 2});
  const ErrorSums large = SumsOf({1, 2, 3, 4, 5, 6}, {1, 2, 3, 4, 5, 6.1});
  QualityMerger merger;
  merger.Add("small", small);
  merger.Add("large", large);
  merger.Add("empty", ErrorSums{});
  const Quality a = QualityOf(small);
  const Quality b = QualityOf(large);
  EXPECT_DOUBLE_EQ(merger.Mean().rmse, (a.rmse + b.rmse) / 2);
  EXPECT_DOUBLE_EQ(*merger.Mean().snr_db, (*a.snr_db + *b.snr_db) / 2);
  EXPECT_DOUBLE_EQ(merger.Mean().cosine_similarity, (a.cosine_similarity + b.cosine_similarity) / 2);
  EXPECT_DOUBLE_EQ(merger.Mean().max_error, 0.5);
  EXPECT_DOUBLE_EQ(merger.ElementWeighted().rmse, std::sqrt((0.25 + 0.01) / 8));
  EXPECT_EQ(merger.worst_tensor(), "small");
}

TEST(QualityMergerTest, LosslessTensorsAreLeftOutOfTheMeanSnr) {
  const ErrorSums lossy = SumsOf({1, 2}, {1.5, 2});
  QualityMerger merger;
  merger.Add("exact", SumsOf({1, 2}, {1, 2}));
  EXPECT_FALSE(merger.Mean().snr_db.has_value());
  EXPECT_EQ(merger.worst_tensor(), "");
  merger.Add("lossy", lossy);
  EXPECT_DOUBLE_EQ(*merger.Mean().snr_db, *QualityOf(lossy).snr_db);
}

}  // namespace
}  // namespace kvcompress
