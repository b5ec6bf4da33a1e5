#include "core/simd/trellis.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "tests/core/simd/gaussian.h"
#include "tests/core/simd/guarded.h"
#include "tests/core/simd/strip_tables.h"
#include "tests/core/simd/with_target.h"

namespace kvcompress::simd {
namespace {

using ::kvcompress::testing::GaussianValues;
using ::kvcompress::testing::Guarded;
using ::kvcompress::testing::SomeTables;
using ::kvcompress::testing::StripOf;
using ::kvcompress::testing::UsableTargets;
using ::kvcompress::testing::WithTarget;

// Tokens of ties, halves and whole points, of both signs.
std::vector<float> Halves(size_t tokens, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> values(tokens * kStripChannels);
  for (float& value : values) value = static_cast<float>(static_cast<int>(random() % 41) - 20) * 0.5f;
  return values;
}

double Error(const float* y, size_t tokens, const std::vector<int32_t>& k) {
  double sum = 0;
  uint8_t state = 0;
  for (size_t t = 0; t < tokens; ++t) {
    const double point = PointOf(k[t], QuantizerOf(state));
    sum += std::pow(static_cast<double>(y[t * kStripChannels]) - point, 2);
    state = NextState(state, k[t] % 2 != 0);
  }
  return sum;
}

// All paths of a few tokens: none has less error.
TEST(TrellisDefinition, FindsTheNearestPath) {
  constexpr size_t kTokens = 5;
  for (uint32_t seed = 0; seed < 40; ++seed) {
    const std::vector<float> y = GaussianValues(kTokens * kStripChannels, 1.5f, seed);
    std::vector<uint32_t> decisions(4 * kTokens);
    std::vector<int32_t> k(y.size());
    scalar::TrellisQuantize(y.data(), kTokens, decisions.data(), k.data());
    std::vector<int32_t> chosen(kTokens), path(kTokens);
    for (size_t t = 0; t < kTokens; ++t) chosen[t] = k[t * kStripChannels];
    double least = 1e30;
    for (int code = 0; code < 7 * 7 * 7 * 7 * 7; ++code) {
      for (size_t t = 0, left = static_cast<size_t>(code); t < kTokens; ++t, left /= 7) {
        path[t] = static_cast<int32_t>(left % 7) - 3 + static_cast<int32_t>(std::lround(y[t * kStripChannels] / 2));
      }
      least = std::min(least, Error(y.data(), kTokens, path));
    }
    EXPECT_NEAR(Error(y.data(), kTokens, chosen), least, 1e-5) << seed;
  }
}

TEST(TrellisDefinition, ReachesTheLargestPoints) {
  constexpr size_t kTokens = 6;
  std::vector<float> y(kTokens * kStripChannels);
  for (size_t i = 0; i < y.size(); ++i) y[i] = (i % 2 == 0 ? 1.0f : -1.0f) * (0x1p24f - 8 - static_cast<float>(i));
  std::vector<uint32_t> decisions(4 * kTokens);
  std::vector<int32_t> k(y.size());
  scalar::TrellisQuantize(y.data(), kTokens, decisions.data(), k.data());
  for (size_t c = 0; c < kStripChannels; ++c) {
    uint8_t state = 0;
    for (size_t t = 0; t < kTokens; ++t) {
      const int32_t value = k[t * kStripChannels + c];
      const int32_t point = PointOf(value, QuantizerOf(state));
      EXPECT_LE(std::abs(point), kMaxPoint);
      EXPECT_NEAR(static_cast<double>(point), y[t * kStripChannels + c], 2);
      state = NextState(state, value % 2 != 0);
    }
  }
}

class TrellisTest : public ::testing::TestWithParam<int64_t> {
 private:
  const WithTarget with_{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(All, TrellisTest, ::testing::ValuesIn(UsableTargets()),
                         [](const auto& param) { return std::string(hwy::TargetName(param.param)); });

TEST_P(TrellisTest, QuantizesAsTheDefinition) {
  for (const size_t tokens : {1, 2, 3, 16, 129, 300}) {
    for (const float deviation : {0.1f, 0.7f, 2.0f, 30.0f, 1e5f}) {
      for (const bool ties : {false, true}) {
        const std::vector<float> y = ties ? Halves(tokens, 3) : GaussianValues(tokens * kStripChannels, deviation, 7);
        const Guarded in(y.data(), 4 * y.size(), Guarded::Against::kPageAfter);
        std::vector<uint32_t> decisions(4 * tokens);
        std::vector<int32_t> want(y.size());
        Guarded got(4 * y.size(), Guarded::Against::kPageAfter), room(16 * tokens, Guarded::Against::kPageAfter);
        scalar::TrellisQuantize(y.data(), tokens, decisions.data(), want.data());
        TrellisQuantize(reinterpret_cast<const float*>(in.data()), tokens, reinterpret_cast<uint32_t*>(room.data()),
                        reinterpret_cast<int32_t*>(got.data()));
        ASSERT_EQ(std::memcmp(got.data(), want.data(), got.size()), 0) << tokens << " " << deviation << " " << ties;
        scalar::PlainQuantize(y.data(), tokens, want.data());
        PlainQuantize(reinterpret_cast<const float*>(in.data()), tokens, reinterpret_cast<int32_t*>(got.data()));
        ASSERT_EQ(std::memcmp(got.data(), want.data(), got.size()), 0) << tokens << " " << deviation << " " << ties;
      }
    }
  }
}

struct Symbols {
  std::vector<uint8_t> symbols;
  std::vector<uint32_t> escapes;
  std::vector<int32_t> points;
  StripStates states = {};
};

TEST_P(TrellisTest, SymbolsAreThoseOfTheDefinition) {
  const std::vector<ChannelTable> tables = SomeTables();
  for (const bool has_low_bits : {false, true}) {
    const StripTables strip = StripOf(tables, has_low_bits);
    for (const size_t channels : {1, 7, 16, 31, 32}) {
      for (const bool trellis : {false, true}) {
        constexpr size_t kTokens = 200;
        std::mt19937 random(5);
        std::vector<int32_t> k(kTokens * kStripChannels);
        for (int32_t& value : k) value = static_cast<int32_t>(random() % (random() % 9 == 0 ? 300 : 5)) - 2;
        const auto run = [&](auto symbols_of) {
          Symbols out{std::vector<uint8_t>(k.size()), std::vector<uint32_t>(kTokens), std::vector<int32_t>(k.size())};
          symbols_of(strip, k.data(), kTokens, channels, trellis ? &out.states : nullptr, out.symbols.data(),
                     out.escapes.data(), out.points.data());
          return out;
        };
        const Symbols want = run(scalar::StripSymbols);
        const Symbols got = run(StripSymbols);
        ASSERT_EQ(got.escapes, want.escapes);
        for (size_t t = 0; t < kTokens; ++t) {
          const auto begin = static_cast<ptrdiff_t>(t * kStripChannels);
          const auto end = begin + static_cast<ptrdiff_t>(channels);
          ASSERT_TRUE(std::equal(want.symbols.begin() + begin, want.symbols.begin() + end, got.symbols.begin() + begin))
              << t;
          ASSERT_TRUE(std::equal(want.points.begin() + begin, want.points.begin() + end, got.points.begin() + begin))
              << t;
        }
        for (size_t c = 0; c < channels; ++c) ASSERT_EQ(got.states[c], want.states[c]);
      }
    }
  }
}

TEST_P(TrellisTest, PlainSymbolsAreThoseOfTheDefinition) {
  const std::vector<ChannelTable> tables = SomeTables();
  constexpr size_t kTokens = 100, kStride = 70, kFirst = 35;
  const std::vector<float> means = GaussianValues(2 * kStripChannels, 2, 9);
  for (const bool has_low_bits : {false, true}) {
    const StripTables strip = StripOf(tables, has_low_bits);
    // Of F32 they are placed where the values are, of the unit 0 nowhere.
    for (const auto& kind : {std::pair{0.0f, DType::kF32}, std::pair{0.3f, DType::kF32}, std::pair{0.3f, DType::kF16},
                             std::pair{1e5f, DType::kBF16}}) {
      const float unit = kind.first;
      const DType dtype = kind.second;
      SCOPED_TRACE(::testing::Message() << DTypeName(dtype) << unit);
      const auto run = [&](auto symbols_of, std::vector<float>& values, std::vector<uint8_t>& placed, Symbols& out) {
        void* const to = dtype == DType::kF32 ? static_cast<void*>(values.data() + kFirst) : placed.data();
        symbols_of(strip,
                   PlainStrip{values.data() + kFirst, kStride, kTokens, means.data(), 4, means.data() + kStripChannels,
                              unit, PlacedValues{dtype, to, kStride}},
                   out.points.data(), out.symbols.data(), out.escapes.data());
      };
      const auto none = [] {
        constexpr size_t kCount = kTokens * kStripChannels;
        return Symbols{std::vector<uint8_t>(kCount), std::vector<uint32_t>(kTokens, 1u << 31),
                       std::vector<int32_t>(kCount)};
      };
      std::vector<float> want_values = GaussianValues(kTokens * kStride, 3, 4), got_values = want_values;
      std::vector<uint8_t> want_placed(2 * kTokens * kStride), got_placed = want_placed;
      Symbols want = none(), got = none();
      run(scalar::PlainSymbols, want_values, want_placed, want);
      run(PlainSymbols, got_values, got_placed, got);
      for (size_t i = 0; i < got.points.size() && !has_low_bits; ++i) {
        const bool is_escape = (want.escapes[i / kStripChannels] >> (i % kStripChannels) & 1) != 0;
        if (!is_escape) got.points[i] = want.points[i];
      }
      EXPECT_EQ(got.symbols, want.symbols);
      EXPECT_EQ(got.escapes, want.escapes);
      EXPECT_EQ(got.points, want.points);
      EXPECT_EQ(got_values, want_values);
      EXPECT_EQ(got_placed, want_placed);
      EXPECT_EQ(want_placed == std::vector<uint8_t>(want_placed.size()), dtype == DType::kF32);
      EXPECT_NE(std::count_if(want.escapes.begin(), want.escapes.end(), [](uint32_t e) { return e != 0; }), 0);
    }
  }
}

}  // namespace
}  // namespace kvcompress::simd
