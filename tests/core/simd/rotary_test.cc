#include "core/simd/rotary.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
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
        const double got = std::ldexp(static_cast<double>(RotaryFrequency(theta, {}, dims, i)), -64);
        EXPECT_NEAR(got, turns, 1e-13 * turns + 0x1p-64) << theta << " " << dims << " " << i;
      }
    }
  }
}

// A scaled pair's turns, as transformers' _compute_..._parameters have them.
double LlamaTurns(const RotaryScaling& scaling, double turns) {
  const double wavelength = 1 / turns;
  const auto original = static_cast<double>(scaling.original);
  if (wavelength < original / scaling.high) return turns;
  if (wavelength > original / scaling.low) return turns / scaling.factor;
  const double smooth = (original / wavelength - scaling.low) / (scaling.high - scaling.low);
  return (1 - smooth) * turns / scaling.factor + smooth * turns;
}

double YarnTurns(const RotaryScaling& scaling, double theta, double dims, double pair, double turns) {
  const auto dim_of = [&](double rotations) {
    return dims * std::log(static_cast<double>(scaling.original) / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(theta));
  };
  const double low = std::max(std::floor(dim_of(scaling.high)), 0.0);
  double high = std::min(std::ceil(dim_of(scaling.low)), dims - 1);
  if (low == high) high += 0.001;
  const double kept = 1 - std::clamp((pair - low) / (high - low), 0.0, 1.0);
  return turns / scaling.factor * (1 - kept) + turns * kept;
}

TEST(RotaryFrequency, IsScaledAsInTheModels) {
  using Kind = RotaryScaling::Kind;
  const RotaryScaling scalings[] = {{Kind::kLinear, 4},
                                    {Kind::kLlama3, 8, 1, 4, 8192},
                                    {Kind::kLlama3, 32, 1, 4, 8192},
                                    {Kind::kLlama3, 1, 0.5, 6, 100},
                                    {Kind::kYarn, 4, 1, 32, 32768},
                                    {Kind::kYarn, 40, 1, 32, 4096},
                                    {Kind::kYarn, 2, 1, 2, 7},
                                    {Kind::kYarn, 2, 1e-6, 1e6, 1}};
  for (const RotaryScaling& scaling : scalings) {
    for (const double theta : {1.5, 10000.0, 500000.0, 1e6}) {
      ASSERT_EQ(FaultOf(scaling, theta), "");
      for (const size_t dims : {2, 64, 128}) {
        for (size_t i = 0; i < dims / 2; ++i) {
          const double plain = std::ldexp(static_cast<double>(RotaryFrequency(theta, {}, dims, i)), -64);
          const double turns = scaling.kind == Kind::kLinear   ? plain / scaling.factor
                               : scaling.kind == Kind::kLlama3 ? LlamaTurns(scaling, plain)
                                                               : YarnTurns(scaling, theta, static_cast<double>(dims),
                                                                           static_cast<double>(i), plain);
          const double got = std::ldexp(static_cast<double>(RotaryFrequency(theta, scaling, dims, i)), -64);
          EXPECT_NEAR(got, turns, 1e-12 * turns + 0x1p-63) << theta << " " << dims << " " << i;
        }
      }
    }
  }
}

TEST(RotaryFrequency, ScalesNothingThatNoModelHas) {
  using Kind = RotaryScaling::Kind;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  for (const double factor : {0.0, 0.999, -8.0, 1.1e6, nan, infinity}) {
    for (const Kind kind : {Kind::kLinear, Kind::kLlama3, Kind::kYarn}) {
      EXPECT_NE(FaultOf(WithUsual({.kind = kind, .factor = factor, .original = 8192}), 10000), "") << factor;
    }
  }
  for (const double bad : {-1.0, 1e-7, 1.1e6, nan, infinity}) {
    EXPECT_NE(FaultOf({Kind::kLlama3, 8, bad, 1e6, 8192}, 10000), "") << bad;
    EXPECT_NE(FaultOf({Kind::kYarn, 8, 1, bad, 8192}, 10000), "") << bad;
  }
  EXPECT_NE(FaultOf({Kind::kLlama3, 8, 4, 4, 8192}, 10000), "");
  EXPECT_NE(FaultOf({Kind::kLlama3, 8, 1, 4, 0}, 10000), "");
  EXPECT_NE(FaultOf({Kind::kLlama3, 8, 1, 4, uint64_t{1} << 60}, 10000), "");
  EXPECT_NE(FaultOf({Kind::kYarn, 8, 1, 32, 8192}, 1), "");
  EXPECT_EQ(FaultOf({Kind::kLlama3, 8, 1, 4, 8192}, 1), "");
  EXPECT_NE(FaultOf({Kind::kLinear, 8, 1, 0, 0}, 10000), "");
  EXPECT_NE(FaultOf({Kind::kNone, 8, 0, 0, 0}, 10000), "");
  EXPECT_NE(FaultOf(WithUsual({.kind = Kind::kYarn, .factor = 4}), 10000), "");  // no model's original is the usual one
  EXPECT_EQ(WithUsual({.kind = Kind::kLlama3, .factor = 8}), (RotaryScaling{Kind::kLlama3, 8, 1, 4, 8192}));
}

// Frozen: frames depend on every bit of them.
TEST(RotaryFrequency, HasTheBitsOfTheFormat) {
  EXPECT_EQ(RotaryFrequency(10000, {}, 64, 0), 0x28be60db93910600u);
  EXPECT_EQ(RotaryFrequency(10000, {}, 64, 1), 0x1e8dae29db02bd00u);
  EXPECT_EQ(RotaryFrequency(1e6, {}, 128, 63), 0x350430ff7cbu);
  const RotaryScaling llama3 = {RotaryScaling::Kind::kLlama3, 8, 1, 4, 8192};
  EXPECT_EQ(RotaryFrequency(500000, llama3, 128, 33), 0x342f296f37431u);
  const RotaryScaling yarn = {RotaryScaling::Kind::kYarn, 4, 1, 32, 32768};
  EXPECT_EQ(RotaryFrequency(1e6, yarn, 128, 30), 0xb1a08351c06e7u);
}

TEST(RotaryTable, HasCosinesAndSines) {
  RotaryTable table;
  for (const uint64_t first : {uint64_t{0}, uint64_t{131}, uint64_t{1'000'000}}) {
    table.Make({.theta = 10000}, 64, first, 70);
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
  table.Make({.theta = 10000}, 64, 5, 20);
  const auto expect_fresh = [&](double theta, size_t dims, uint64_t first, size_t tokens, double factor = 0) {
    RotaryEmbedding rotary = {.theta = theta};
    if (factor > 0) rotary.scaling = {.kind = RotaryScaling::Kind::kLinear, .factor = factor};
    table.Make(rotary, dims, first, tokens);
    RotaryTable other;
    other.Make(rotary, dims, first, tokens);
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
  expect_fresh(500000, 32, 6, 30, 2);
  expect_fresh(500000, 32, 6, 30, 4);
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
        table.Make({.theta = 500000}, dims, 1234, kRows + 4);
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
    table.Make({.theta = kTheta}, kDims, kFirst, kRows);
    std::vector<float> back = turned;
    TurnRows(table, 0, pairs, RotaryTurn::kBack, back.data(), kRows, kDims);
    for (size_t i = 0; i < rows.size(); ++i) ASSERT_NEAR(back[i], rows[i], 3e-6);
    TurnRows(table, 0, pairs, RotaryTurn::kForward, back.data(), kRows, kDims);
    for (size_t i = 0; i < rows.size(); ++i) ASSERT_NEAR(back[i], turned[i], 3e-6);
  }
}

}  // namespace
}  // namespace kvcompress::simd
