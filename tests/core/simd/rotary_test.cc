#include "core/simd/rotary.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <cstring>
#include <numbers>
#include <random>
#include <string>
#include <vector>

#include "tests/core/simd/gaussian.h"
#include "tests/core/simd/guarded.h"
#include "tests/core/simd/with_target.h"

namespace kvcompress::simd {
namespace {

using ::kvcompress::testing::GaussianValues;
using ::kvcompress::testing::Guarded;
using ::kvcompress::testing::UsableTargets;
using ::kvcompress::testing::WithTarget;

constexpr double kThetas[] = {1, 100, 10000, 500000, 1e6, 1e9};

TEST(RotaryFrequency, IsThatOfTheFormula) {
  for (const double theta : kThetas) {
    for (const size_t dims : {2, 16, 64, 96, 128}) {
      for (size_t i = 0; i < dims / 2; ++i) {
        const double turns =
            std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(dims)) / (2 * std::numbers::pi);
        const double got = std::ldexp(static_cast<double>(RotaryFrequency(theta, dims, i)), -64);
        EXPECT_NEAR(got, turns, 1e-13 * turns + 0x1p-64) << theta << " " << dims << " " << i;
      }
    }
  }
}

// Frozen: frames depend on every bit of them.
TEST(RotaryFrequency, HasTheBitsOfTheFormat) {
  EXPECT_EQ(RotaryFrequency(10000, 64, 0), 0x28be60db93910600u);
  EXPECT_EQ(RotaryFrequency(10000, 64, 1), 0x1e8dae29db02bd00u);
  EXPECT_EQ(RotaryFrequency(1e6, 128, 63), 0x350430ff7cbu);
}

TEST(RotaryTable, HasCosinesAndSines) {
  RotaryTable table;
  for (const uint64_t first : {uint64_t{0}, uint64_t{131}, uint64_t{1'000'000}}) {
    table.Make(10000, 64, first, 70);
    for (size_t t = 0; t < 70; ++t) {
      for (size_t i = 0; i < 32; ++i) {
        const double angle = static_cast<double>(first + t) * std::pow(10000.0, -static_cast<double>(i) / 32);
        ASSERT_NEAR(table.row(t)[i], std::cos(angle), 3e-7) << first + t << " " << i;
        ASSERT_NEAR(table.row(t)[32 + i], std::sin(angle), 3e-7) << first + t << " " << i;
      }
    }
  }
}

TEST(RotaryTable, ForgetsWhatItWasMadeFor) {
  RotaryTable table, fresh;
  table.Make(10000, 64, 5, 20);
  const auto expect_fresh = [&](double theta, size_t dims, uint64_t first, size_t tokens) {
    table.Make(theta, dims, first, tokens);
    RotaryTable other;
    other.Make(theta, dims, first, tokens);
    ASSERT_EQ(table.pairs(), dims / 2);
    ASSERT_GE(table.tokens(), tokens);
    for (size_t t = 0; t < tokens; ++t) {
      for (size_t i = 0; i < dims; ++i) ASSERT_EQ(table.row(t)[i], other.row(t)[i]);
    }
  };
  expect_fresh(10000, 64, 5, 7);
  expect_fresh(10000, 64, 6, 7);
  expect_fresh(10000, 64, 6, 30);
  expect_fresh(10000, 32, 6, 30);
  expect_fresh(500000, 32, 6, 30);
}

class RotaryTest : public ::testing::TestWithParam<int64_t> {
 private:
  const WithTarget with_{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(All, RotaryTest, ::testing::ValuesIn(UsableTargets()),
                         [](const auto& param) { return std::string(hwy::TargetName(param.param)); });

TEST_P(RotaryTest, CosinesAreThoseOfTheDefinition) {
  std::vector<uint32_t> phases = {0, 1, 0xffffffff, 0x1fffffff, 0x20000000, 0x40000000, 0x60000000, 0x80000000};
  std::mt19937 random(3);
  while (phases.size() < 5000) phases.push_back(static_cast<uint32_t>(random()));
  for (const size_t count : {size_t{0}, size_t{1}, size_t{7}, size_t{16}, size_t{17}, size_t{40}, phases.size()}) {
    const Guarded in(phases.data(), 4 * count, Guarded::Against::kPageAfter);
    Guarded cosines(4 * count, Guarded::Against::kPageAfter), sines(4 * count, Guarded::Against::kPageBefore);
    CosSin(reinterpret_cast<const uint32_t*>(in.data()), count, reinterpret_cast<float*>(cosines.data()),
           reinterpret_cast<float*>(sines.data()));
    std::vector<float> want_cosines(count), want_sines(count);
    scalar::CosSin(phases.data(), count, want_cosines.data(), want_sines.data());
    if (count == 0) continue;
    ASSERT_EQ(std::memcmp(cosines.data(), want_cosines.data(), 4 * count), 0);
    ASSERT_EQ(std::memcmp(sines.data(), want_sines.data(), 4 * count), 0);
    for (size_t i = 0; i < count; ++i) {
      const double angle = std::ldexp(static_cast<double>(phases[i]), -32) * 2 * std::numbers::pi;
      ASSERT_NEAR(want_cosines[i], std::cos(angle), 2e-7);
      ASSERT_NEAR(want_sines[i], std::sin(angle), 2e-7);
    }
  }
}

TEST_P(RotaryTest, TurnsAsTheDefinition) {
  for (const size_t dims : {2, 6, 16, 32, 64, 96, 128}) {
    for (const RotaryPairs pairs : {RotaryPairs::kHalf, RotaryPairs::kInterleaved}) {
      for (const RotaryTurn turn : {RotaryTurn::kForward, RotaryTurn::kBack}) {
        const size_t stride = dims + 3;
        constexpr size_t kRows = 9;
        RotaryTable table;
        table.Make(500000, dims, 1234, kRows + 4);
        const std::vector<float> rows = GaussianValues(stride * (kRows - 1) + dims, 1, 9);
        std::vector<float> want = rows;
        scalar::TurnRows(table, 4, pairs, turn, want.data(), kRows, stride);
        Guarded got(rows.data(), 4 * rows.size(), Guarded::Against::kPageAfter);
        TurnRows(table, 4, pairs, turn, reinterpret_cast<float*>(got.data()), kRows, stride);
        ASSERT_EQ(std::memcmp(got.data(), want.data(), got.size()), 0) << dims;
      }
    }
  }
}

TEST_P(RotaryTest, TurnsBackWhatAModelTurned) {
  constexpr size_t kDims = 64;
  constexpr size_t kRows = 50;
  constexpr double kTheta = 10000;
  constexpr uint64_t kFirst = 300;
  for (const RotaryPairs pairs : {RotaryPairs::kHalf, RotaryPairs::kInterleaved}) {
    const std::vector<float> rows = GaussianValues(kDims * kRows, 1, 2);
    std::vector<float> turned(rows.size());
    for (size_t r = 0; r < kRows; ++r) {
      for (size_t i = 0; i < kDims / 2; ++i) {
        const size_t a = r * kDims + (pairs == RotaryPairs::kHalf ? i : 2 * i);
        const size_t b = a + (pairs == RotaryPairs::kHalf ? kDims / 2 : 1);
        const double angle = static_cast<double>(kFirst + r) * std::pow(kTheta, -2.0 * static_cast<double>(i) / kDims);
        turned[a] = static_cast<float>(rows[a] * std::cos(angle) - rows[b] * std::sin(angle));
        turned[b] = static_cast<float>(rows[b] * std::cos(angle) + rows[a] * std::sin(angle));
      }
    }
    RotaryTable table;
    table.Make(kTheta, kDims, kFirst, kRows);
    std::vector<float> back = turned;
    TurnRows(table, 0, pairs, RotaryTurn::kBack, back.data(), kRows, kDims);
    for (size_t i = 0; i < rows.size(); ++i) ASSERT_NEAR(back[i], rows[i], 3e-6);
    TurnRows(table, 0, pairs, RotaryTurn::kForward, back.data(), kRows, kDims);
    for (size_t i = 0; i < rows.size(); ++i) ASSERT_NEAR(back[i], turned[i], 3e-6);
  }
}

}  // namespace
}  // namespace kvcompress::simd
