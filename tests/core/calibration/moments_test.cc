#include "core/calibration/moments.h"

#include <gmock/gmock.h>

#include <cmath>
#include <random>
#include <vector>

namespace kvcompress {
namespace {

// [heads, tokens, head_dim] of values about a mean that is a thousand times as large.
std::vector<float> MakeRows(size_t heads, size_t tokens, size_t head_dim, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> rows(heads * tokens * head_dim);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = 1000.0f + normal(random) * static_cast<float>(1 + i % head_dim);
  return rows;
}

TEST(GroupMomentsTest, TheyAreThoseOfAllRunsTogether) {
  constexpr size_t kHeads = 2, kDim = 3, kAll = kHeads * kDim;
  GroupMoments moments(kHeads, kDim);
  std::vector<std::vector<double>> tokens;
  for (const size_t count : {1, 7, 0, 100, 33}) {
    const std::vector<float> rows = MakeRows(kHeads, count, kDim, static_cast<uint32_t>(count));
    moments.Add(rows.data(), count);
    for (size_t token = 0; token < count; ++token) {
      std::vector<double>& values = tokens.emplace_back();
      for (size_t i = 0; i < kAll; ++i) values.push_back(rows[(i / kDim * count + token) * kDim + i % kDim]);
    }
  }
  ASSERT_EQ(moments.tokens(), 141);
  const std::vector<double> covariance = moments.Covariance();
  std::vector<double> mean(kAll);
  for (const auto& values : tokens) {
    for (size_t i = 0; i < kAll; ++i) mean[i] += values[i] / 141;
  }
  for (size_t i = 0; i < kAll; ++i) {
    EXPECT_NEAR(moments.mean()[i], mean[i], 1e-9);
    for (size_t j = 0; j < kAll; ++j) {
      double expected = 0;
      for (const auto& values : tokens) expected += (values[i] - mean[i]) * (values[j] - mean[j]) / 141;
      EXPECT_NEAR(covariance[i * kAll + j], expected, 1e-9) << i << " " << j;
    }
  }
}

TEST(Int4ErrorTest, ItIsThatOfRoundingToFifteenSteps) {
  Int4Error error;
  EXPECT_EQ(error.mean_squared_error(), 0);
  EXPECT_EQ(error.variance(), 0);
  // The scale of the first 64 values is 1, that of the others 0.5.
  std::vector<float> row(80, 0.0f);
  row[0] = 7;
  row[1] = 2.25f;
  row[64] = -3.5f;
  row[65] = 0.6f;
  error.Add(row.data(), row.size());
  EXPECT_NEAR(error.mean_squared_error(), (0.25 * 0.25 + 0.1 * 0.1) / 80, 1e-8);
  const double mean = (7 + 2.25 - 3.5 + 0.6) / 80;
  EXPECT_NEAR(error.variance(), (49 + 2.25 * 2.25 + 3.5 * 3.5 + 0.36) / 80 - mean * mean, 1e-6);
}

}  // namespace
}  // namespace kvcompress
