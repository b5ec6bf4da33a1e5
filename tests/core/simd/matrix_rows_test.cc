#include "core/simd/matrix_rows.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "tests/core/simd/gaussian.h"
#include "tests/core/simd/with_target.h"

namespace kvcompress::simd {
namespace {

using ::kvcompress::testing::GaussianValues;
using ::kvcompress::testing::UsableTargets;
using ::kvcompress::testing::WithTarget;

TEST(MatrixRows, AreSumsOfProducts) {
  const float rows[] = {1, 2, -7, 3, 4, -7};
  const float matrix[] = {10, 20, 30, 40};
  float out[4];
  MultiplyRows(rows, 2, 3, matrix, 2, out);
  EXPECT_EQ(out[0], 70);
  EXPECT_EQ(out[1], 100);
  EXPECT_EQ(out[2], 150);
  EXPECT_EQ(out[3], 220);
}

TEST(MatrixRows, EveryTargetGivesTheBitsOfTheDefinition) {
  for (const size_t dim : {1, 7, 16, 64, 80, 128, 192}) {
    for (const size_t count : {0, 1, 3, 4, 5, 13}) {
      const size_t stride = dim + count % 3;
      const std::vector<float> rows = GaussianValues(count * stride, 1, 1);
      const std::vector<float> matrix = GaussianValues(dim * dim, 1, 2);
      // One more, which stays.
      std::vector<float> expected(count * dim + 1, 5);
      scalar::MultiplyRows(rows.data(), count, stride, matrix.data(), dim, expected.data());
      EXPECT_EQ(expected.back(), 5);
      for (const int64_t target : UsableTargets()) {
        const WithTarget use(target);
        std::vector<float> got(expected.size(), 5);
        MultiplyRows(rows.data(), count, stride, matrix.data(), dim, got.data());
        EXPECT_EQ(std::memcmp(got.data(), expected.data(), 4 * got.size()), 0) << dim << " " << count;
      }
    }
  }
}

}  // namespace
}  // namespace kvcompress::simd
