#include "core/quality/quality.h"

#include <gmock/gmock.h>

#include <charconv>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"

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

TEST(QualityTest, NoErrorHasAnInfiniteSnr) {
  const Quality quality = QualityOf(SumsOf({1, 2}, {1, 2}));
  EXPECT_EQ(quality.snr_db, kInfiniteSnrDb);
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
  EXPECT_EQ(QualityOf(SumsOf({0, 0}, {0, 1})).cosine_similarity, 0);
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

TEST(QualityTest, AnAllZeroTensorThatCameBackExactHasACosineOfOne) {
  EXPECT_EQ(QualityOf(SumsOf({0, 0}, {0, 0})).cosine_similarity, 1);
}

TEST(QualityTest, AConstantWithAnErrorHasNoSnrAndIsJudgedByItsMagnitude) {
  const struct {
    double decoded;
    QualityLevel level;
    size_t violations;
  } cases[] = {
      {1000, QualityLevel::kExcellent, 0},  {1005, QualityLevel::kExcellent, 0}, {1020, QualityLevel::kGood, 0},
      {1100, QualityLevel::kAcceptable, 0}, {1150, QualityLevel::kPoor, 1},
  };
  for (const auto& one : cases) {
    for (const std::vector<double>& x : {std::vector<double>{1000}, {1000, 1000, 1000}}) {
      const Quality quality = QualityOf(SumsOf(x, std::vector<double>(x.size(), one.decoded)));
      EXPECT_EQ(quality.snr_db.has_value(), one.decoded == 1000) << one.decoded;
      EXPECT_EQ(LevelOf(quality), one.level) << one.decoded;
      EXPECT_EQ(CheckThresholds(quality).size(), one.violations) << one.decoded;
    }
  }
  EXPECT_EQ(CheckThresholds(QualityOf(SumsOf({10}, {8})))[0].text, "MaxError 2 > 1.259 of a constant");
  EXPECT_EQ(LevelOf(QualityOf(SumsOf({0, 0}, {1e-9, 0}))), QualityLevel::kPoor);
}

TEST(QualityTest, AConstantOfManyBlocksHasNoSnrEither) {
  for (const float x : {0.1f, 1e6f / 3, -3.3e-5f}) {
    ErrorSums sums;
    for (const size_t count : {131072, 131072, 77777, 1, 1000}) {
      ErrorSums block;
      const std::vector<float> values(count, x);
      const std::vector<float> decoded(count, x * 1.001f);
      simd::MeasureErrors(DType::kF32, values.data(), decoded.data(), count, block);
      sums.Merge(block);
    }
    EXPECT_EQ(QualityOf(sums).snr_db, std::nullopt) << x << ' ' << sums.sum_deviations / sums.sum_squares;
  }
}

ErrorSums WithTokens(ErrorSums sums, double deviations, double error_deviations) {
  sums.token_count = sums.count;
  sums.token_deviations = deviations;
  sums.token_error_deviations = error_deviations;
  return sums;
}

// Almost all of a variance of 1e6 is constant over the tokens: 50 dB, of which attention sees 10.
ErrorSums DestroyedKey() {
  return WithTokens({.count = 100,
                     .sum_squares = 1e8,
                     .sum_deviations = 1e8,
                     .sum_error_squares = 1e3,
                     .sum_abs_error = 300,
                     .max_abs_error = 0.4},
                    1e4, 1e3);
}

TEST(QualityTest, DestroyedKeysAreNotCalledExcellent) {
  const Quality key = QualityOf(DestroyedKey(), TensorKind::kKey);
  EXPECT_NEAR(*key.snr_db, 50, 1e-9);
  EXPECT_NEAR(*key.token_snr_db, 10, 1e-9);
  EXPECT_EQ(key.JudgedSnrDb(), key.token_snr_db);
  EXPECT_EQ(CheckThresholds(key, {.max_rmse = 10}).at(0).text, "TokenSNR 10.00dB < 18.00dB");
  const Quality value = QualityOf(DestroyedKey(), TensorKind::kValue);
  EXPECT_EQ(value.JudgedSnrDb(), value.snr_db);
  // It may be either.
  const Quality other = QualityOf(DestroyedKey(), TensorKind::kOther);
  EXPECT_EQ(other.JudgedSnrDb(), other.token_snr_db);
}

TEST(QualityTest, LevelsOfKeysGoByTokenSnr) {
  ErrorSums sums = DestroyedKey();
  sums.sum_error_squares = sums.token_error_deviations = 1e-3;  // RMSE 0.003
  EXPECT_EQ(LevelOf(QualityOf(sums, TensorKind::kKey)), QualityLevel::kExcellent);
  sums.token_deviations = 1;
  EXPECT_EQ(LevelOf(QualityOf(sums, TensorKind::kKey)), QualityLevel::kAcceptable);
  EXPECT_EQ(LevelOf(QualityOf(sums, TensorKind::kValue)), QualityLevel::kExcellent);
}

TEST(QualityTest, AnErrorThatIsTheSameForEveryTokenMovesNoAttention) {
  const Quality key = QualityOf(WithTokens(SumsOf({1, 2, 3}, {2, 3, 4}), 2, 0), TensorKind::kKey);
  EXPECT_EQ(key.token_snr_db, kInfiniteSnrDb);
  EXPECT_EQ(key.JudgedSnrDb(), kInfiniteSnrDb);
}

TEST(QualityTest, KeysOfOneTokenAreJudgedByTheirSnr) {
  const Quality key = QualityOf(WithTokens(SumsOf({1, 2, 3}, {1, 2, 3.1}), 0, 0), TensorKind::kKey);
  EXPECT_EQ(key.token_snr_db, std::nullopt);
  EXPECT_EQ(key.JudgedSnrDb(), key.snr_db);
}

TEST(QualityTest, KindsFollowFromNames) {
  EXPECT_EQ(KindOf("layer_3_key"), TensorKind::kKey);
  EXPECT_EQ(KindOf("layer_3_value"), TensorKind::kValue);
  EXPECT_EQ(KindOf("keys.3"), TensorKind::kOther);
}

TEST(QualityTest, AnInfiniteErrorViolatesEverything) {
  ErrorSums sums = SumsOf({1, 2, 3}, {1, 2, 3.1});
  sums.max_abs_error = sums.sum_error_squares = sums.sum_abs_error = std::numeric_limits<double>::infinity();
  const Quality quality = QualityOf(sums);
  EXPECT_EQ(quality.snr_db, kMinSnrDb);
  EXPECT_EQ(LevelOf(quality), QualityLevel::kPoor);
  EXPECT_EQ(CheckThresholds(quality).size(), 4);
}

TEST(QualityTest, LevelsNeedBothFigures) {
  const auto level = [](double rmse, double snr_db) { return LevelOf({.rmse = rmse, .snr_db = snr_db}); };
  EXPECT_EQ(level(0.009, 40.1), QualityLevel::kExcellent);
  EXPECT_EQ(level(0.01, 40.1), QualityLevel::kGood);
  EXPECT_EQ(level(0.009, 40.0), QualityLevel::kGood);
  EXPECT_EQ(level(0.049, 30.1), QualityLevel::kGood);
  EXPECT_EQ(level(0.05, 99.0), QualityLevel::kAcceptable);
  EXPECT_EQ(level(0.099, 18.1), QualityLevel::kAcceptable);
  EXPECT_EQ(level(0.10, 18.1), QualityLevel::kPoor);
  EXPECT_EQ(level(0.001, 18.0), QualityLevel::kPoor);
}

TEST(QualityTest, ViolationTextsAreTheReferences) {
  const Quality bad{.rmse = 0.1234, .mean_abs_error = 0.1, .snr_db = 17.1, .cosine_similarity = 0.98, .max_error = 0.6};
  std::vector<std::string> texts;
  for (const Violation& violation : CheckThresholds(bad)) texts.push_back(violation.text);
  EXPECT_THAT(texts, ::testing::ElementsAre("RMSE 0.1234 > 0.1000", "MaxError 0.6000 > 0.5000",
                                            "CosineSim 0.9800 < 0.9900", "SNR 17.10dB < 18.00dB"));
  const Quality noise{.rmse = 0.1234, .snr_db = -0.004, .cosine_similarity = -0.00004, .max_error = 0.1};
  texts.clear();
  for (const Violation& violation : CheckThresholds(noise)) texts.push_back(violation.text);
  EXPECT_THAT(texts,
              ::testing::ElementsAre("RMSE 0.1234 > 0.1000", "CosineSim 0.0000 < 0.9900", "SNR 0.00dB < 18.00dB"));
  EXPECT_EQ(FixedText(-0.006, 2), "-0.01");
  EXPECT_EQ(FixedText(-0.04, 1), "0.0");
  const Quality at_the_limit{
      .rmse = 0.10, .mean_abs_error = 0.1, .snr_db = 18.0, .cosine_similarity = 0.99, .max_error = 0.50};
  EXPECT_TRUE(CheckThresholds(at_the_limit).empty());
}

// Numbers are rounded as std::to_chars does: the exact value, half to even.
TEST(QualityTest, FixedTextsAreThoseOfTheStandardLibrary) {
  const auto expected = [](double value, int digits) {
    char text[512];
    const auto end = std::to_chars(std::begin(text), std::end(text), value, std::chars_format::fixed, digits).ptr;
    std::string fixed(text, end);
    const bool is_zero = fixed.find_first_not_of("-.0") == std::string::npos;
    return is_zero && fixed.starts_with('-') ? fixed.substr(1) : fixed;
  };
  std::vector<double> values = {0.0,
                                0.1,
                                0.99995,
                                0.99999,
                                18.0,
                                1e-300,
                                5e-324,
                                0x1p-60,
                                0x1p39,
                                0x1p40,
                                1e300,
                                std::numeric_limits<double>::infinity(),
                                std::numeric_limits<double>::quiet_NaN()};
  for (int i = 0; i < 4096; ++i) values.push_back(i / 32768.0);  // some end in a half of the last digit
  for (int i = 0; i < 256; ++i) values.push_back(i + 0.5);
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> exponents(-14, 13);
  for (int i = 0; i < 20000; ++i) values.push_back(std::pow(10, exponents(random)));
  for (const double value : values) {
    for (const int digits : {0, 1, 2, 4, 6}) {
      ASSERT_EQ(FixedText(value, digits), expected(value, digits)) << value << " with " << digits;
      ASSERT_EQ(FixedText(-value, digits), expected(-value, digits)) << -value << " with " << digits;
    }
  }
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
  EXPECT_EQ(merger.Mean().snr_db, kInfiniteSnrDb);
  EXPECT_EQ(merger.worst_tensor(), "");
  merger.Add("lossy", lossy);
  EXPECT_DOUBLE_EQ(*merger.Mean().snr_db, *QualityOf(lossy).snr_db);
}

TEST(QualityMergerTest, WithoutTensorsThereIsNoLevel) {
  QualityMerger merger;
  EXPECT_EQ(merger.Level(), std::nullopt);
  merger.Add("empty", ErrorSums{});
  EXPECT_EQ(merger.Level(), std::nullopt);
  EXPECT_TRUE(merger.Violations().empty());
}

TEST(QualityMergerTest, OneScalarBesideGoodTensorsDoesNotMakeThemPoor) {
  const ErrorSums good = SumsOf({1, 2, 3}, {1.001, 2.001, 2.999});
  QualityMerger merger;
  merger.Add("layer_0_key", good);
  EXPECT_EQ(merger.Level(), QualityLevel::kExcellent);
  const double snr_db = *merger.Mean().snr_db;
  merger.Add("k_scale", SumsOf({1000}, {1002}));
  EXPECT_EQ(merger.Level(), QualityLevel::kExcellent);
  EXPECT_EQ(*merger.Mean().snr_db, snr_db);
  EXPECT_TRUE(merger.Violations().empty());
  EXPECT_EQ(merger.worst_tensor(), "layer_0_key");
}

TEST(QualityMergerTest, AScalarThatIsLostIsNamed) {
  QualityMerger merger;
  merger.Add("layer_0_key", SumsOf({1, 2, 3}, {1.001, 2.001, 2.999}));
  merger.Add("k_scale", SumsOf({1000}, {800}));
  merger.Add("v_scale", SumsOf({1000}, {600}));
  EXPECT_EQ(merger.Level(), QualityLevel::kPoor);
  ASSERT_EQ(merger.Violations().size(), 1);
  EXPECT_EQ(merger.Violations()[0].text, "MaxError 400 > 125.9 of a constant, v_scale");
  EXPECT_EQ(merger.Violations()[0].kind, ViolationKind::kMaxError);
}

TEST(QualityMergerTest, KeysCountByTokenSnrInTheWorstTensorTheLevelAndTheThresholds) {
  QualityMerger merger;
  merger.Add("layer_0_value", SumsOf({1, 2, 3}, {1.02, 2.01, 2.98}));
  merger.Add("layer_0_key", DestroyedKey());
  const double value = *QualityOf(SumsOf({1, 2, 3}, {1.02, 2.01, 2.98})).snr_db;
  EXPECT_EQ(merger.worst_tensor(), "layer_0_key");
  EXPECT_NEAR(*merger.Mean().snr_db, (value + 50) / 2, 1e-9);
  EXPECT_NEAR(*merger.Mean().token_snr_db, 10, 1e-9);
  EXPECT_EQ(merger.Level(), QualityLevel::kPoor);
  merger.Add("layer_1_key", WithTokens(DestroyedKey(), 1e3, 1e3));
  merger.Add("layer_2_key", WithTokens(DestroyedKey(), 1e3, 1e3));
  std::vector<std::string> texts;
  for (const Violation& violation : merger.Violations()) texts.push_back(violation.text);
  EXPECT_THAT(texts, ::testing::Contains(absl::StrFormat("TokenSNR %.2fdB < 18.00dB", (value + 10) / 4)));
}

}  // namespace
}  // namespace kvcompress
