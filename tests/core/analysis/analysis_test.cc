#include "core/analysis/analysis.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <random>

#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT
using ::testing::DoubleNear;
using ::testing::ElementsAre;

std::vector<std::byte> Values(DType dtype, const std::vector<float>& values) {
  std::vector<std::byte> bytes(values.size() * DTypeSize(dtype));
  for (size_t i = 0; i < values.size(); ++i) StoreFromF32(dtype, values[i], bytes.data(), i);
  return bytes;
}

TEST(AnalyzeTensor, MomentsAndPercentilesOfFiniteValues) {
  std::vector<float> values;
  for (int i = 1; i <= 1000; ++i) values.push_back(static_cast<float>(i % 2 == 0 ? i : -i));
  values.push_back(std::numeric_limits<float>::quiet_NaN());
  values.push_back(-std::numeric_limits<float>::infinity());
  const TensorAnalysis analysis = AnalyzeTensor(MakeTensor("a", DType::kF32, {1002}), Values(DType::kF32, values));
  EXPECT_EQ(analysis.elements, 1002u);
  EXPECT_EQ(analysis.finite, 1000u);
  EXPECT_DOUBLE_EQ(analysis.mean, 0.5);
  EXPECT_NEAR(analysis.stddev, std::sqrt(1001.0 * 2001 / 6 - 0.25), 1e-9);
  EXPECT_EQ(analysis.min, -999);
  EXPECT_EQ(analysis.max, 1000);
  EXPECT_THAT(analysis.abs_percentiles, ElementsAre(500, 900, 990, 999));
}

TEST(AnalyzeTensor, EntropyOfTheExponentField) {
  // Exponents of 1, 2, 4 and 4: 1.5 bits; signs and mantissas do not count.
  for (const DType dtype : kKernelDTypes) {
    const auto bytes = Values(dtype, {1.5f, -2, 4, -5});
    EXPECT_DOUBLE_EQ(AnalyzeTensor(MakeTensor("a", dtype, {4}), bytes).exponent_entropy, 1.5);
  }
}

TEST(AnalyzeTensor, EntropyOfPlanesAndTheirBounds) {
  // BF16 of 2 heads, 4 tokens, 1 channel. Low bytes count up by 64 from token to token, high bytes take two values.
  std::vector<std::byte> bytes;
  for (int head = 0; head < 2; ++head) {
    for (int token = 0; token < 4; ++token) {
      bytes.push_back(static_cast<std::byte>(64 * token));
      bytes.push_back(static_cast<std::byte>(0x3f + token / 2));
    }
  }
  const TensorAnalysis analysis = AnalyzeTensor(MakeTensor("a", DType::kBF16, {2, 4, 1}), bytes);
  EXPECT_THAT(analysis.plane_entropy, ElementsAre(2, 1));
  // Low: 0 64 64 64, so p = 1/4, 3/4. High: 3f 0 1 0.
  const double low = 0.25 * 2 + 0.75 * std::log2(4.0 / 3);
  EXPECT_THAT(analysis.delta_entropy, ElementsAre(DoubleNear(low, 1e-12), DoubleNear(1.5, 1e-12)));
  EXPECT_DOUBLE_EQ(analysis.PlainBound(), 16.0 / 3);
  EXPECT_DOUBLE_EQ(analysis.DeltaBound(), 16.0 / (low + 1.5));
  EXPECT_DOUBLE_EQ(analysis.BestBound(), 16.0 / (low + 1));
}

TEST(AnalyzeTensor, BoundOfRandomBytesIsOneAndOfAConstantInfinite) {
  const TensorAnalysis noise = AnalyzeTensor(MakeTensor("a", DType::kF32, {1u << 18}), MakeBits(1u << 20));
  EXPECT_NEAR(noise.BestBound(), 1, 0.001);
  const auto constant = MakeValues(DType::kF16, 64, Distribution::kConstant);
  EXPECT_TRUE(std::isinf(AnalyzeTensor(MakeTensor("a", DType::kF16, {64}), constant).PlainBound()));
}

TEST(AnalyzeTensor, ChannelOutliersAgainstTheMedianChannel) {
  const auto bytes = Values(DType::kF16, {1, 2, -3, 4, -24, 1, 1, -2, 2, 5, 6, -4});  // rows of 6 channels
  // Channels' largest: 1 2 3 5 24 4, and their (upper) median 4.
  EXPECT_DOUBLE_EQ(AnalyzeTensor(MakeTensor("a", DType::kF16, {2, 6}), bytes).channel_outlier, 6);
}

TEST(AnalyzeTensor, CorrelationOfNeighbouringTokens) {
  // x[t] = r x[t-1] + noise in each channel, with means that must not count.
  for (const double r : {0.0, 0.8, -0.5}) {
    std::mt19937 random(1);
    std::vector<float> values(2 * 4096 * 3);
    for (size_t head = 0; head < 2; ++head) {
      for (size_t channel = 0; channel < 3; ++channel) {
        double x = 0;
        for (size_t t = 0; t < 4096; ++t) {
          x = r * x + Bell(random);
          values[(head * 4096 + t) * 3 + channel] = static_cast<float>(x + 10.0 * static_cast<double>(channel));
        }
      }
    }
    const auto bytes = Values(DType::kF32, values);
    EXPECT_NEAR(AnalyzeTensor(MakeTensor("layer_0_key", DType::kF32, {1, 2, 4096, 3}), bytes).lag1_correlation, r,
                0.02);
  }
}

TEST(AnalyzeTensor, WithoutValues) {
  const TensorAnalysis analysis = AnalyzeTensor(MakeTensor("a", DType::kF16, {0, 4}), {});
  EXPECT_EQ(analysis.elements, 0u);
  EXPECT_EQ(analysis.BestBound(), 0);
}

TEST(AnalyzeTensor, NothingFinite) {
  const auto bytes = Values(DType::kF16, std::vector<float>(8, std::numeric_limits<float>::infinity()));
  const TensorAnalysis analysis = AnalyzeTensor(MakeTensor("a", DType::kF16, {2, 4}), bytes);
  EXPECT_EQ(analysis.finite, 0u);
  EXPECT_EQ(analysis.channel_outlier, 0);
  EXPECT_EQ(analysis.lag1_correlation, 0);
}

// What a model does to a key at a position.
void Rotate(std::span<float> key, uint64_t position, const simd::RotaryEmbedding& rotary) {
  key = key.subspan(rotary.offset);
  const size_t dims = rotary.dims == 0 ? key.size() : rotary.dims;
  const bool interleaved = rotary.pairs == simd::RotaryPairs::kInterleaved;
  const double factor = rotary.scaling.kind == simd::RotaryScaling::Kind::kLinear ? rotary.scaling.factor : 1;
  for (size_t i = 0; i < dims / 2; ++i) {
    const double angle = static_cast<double>(position) / factor *
                         std::pow(rotary.theta, -2.0 * static_cast<double>(i) / static_cast<double>(dims));
    float& one = key[interleaved ? 2 * i : i];
    float& other = key[interleaved ? 2 * i + 1 : i + dims / 2];
    const double x = one;
    const double y = other;
    one = static_cast<float>(x * std::cos(angle) - y * std::sin(angle));
    other = static_cast<float>(y * std::cos(angle) + x * std::sin(angle));
  }
}

TEST(Unrotate, GivesBackWhatWasRotatedInEveryConvention) {
  using Embedding = simd::RotaryEmbedding;
  constexpr auto kInterleaved = simd::RotaryPairs::kInterleaved;
  std::mt19937 random(1);
  std::vector<float> values(2 * 300 * 8);
  for (float& value : values) value = Bell(random);
  for (const Embedding& rotation :
       {Embedding{.theta = 10000}, Embedding{.theta = 10000, .pairs = kInterleaved}, Embedding{.theta = 500, .dims = 6},
        Embedding{.theta = 500, .pairs = kInterleaved, .dims = 4, .start = 777}, Embedding{.theta = 1e6, .start = 3},
        Embedding{.theta = 1e4, .offset = 4},
        Embedding{.theta = 1e4, .dims = 2, .offset = 3, .scaling = {simd::RotaryScaling::Kind::kLinear, 2.5}}}) {
    for (const bool shifted : {false, true}) {
      std::vector<uint64_t> first;
      if (shifted) first = {1000, 77};
      std::vector<float> rotated = values;
      for (size_t row = 0; row < 600; ++row) {
        Rotate(std::span(rotated).subspan(row * 8, 8), rotation.start + row % 300 + (shifted ? first[row / 300] : 0),
               rotation);
      }
      const TensorDesc tensor = MakeTensor("layer_0_key", DType::kF32, {1, 2, 300, 8});
      const std::vector<std::byte> in = Values(DType::kF32, rotated);
      const std::vector<std::byte> result = Unrotate(tensor, in, rotation, first);
      double difference = 0;
      for (size_t i = 0; i < values.size(); ++i) {
        ASSERT_NEAR(LoadAsF32(DType::kF32, result.data(), i), values[i], 2e-6) << i;
        difference += std::fabs(values[i] - rotated[i]);
      }
      EXPECT_NEAR(MeanDifference(DType::kF32, in, result), difference / static_cast<double>(values.size()), 1e-6);
    }
  }
}

TEST(Unrotate, NeedsPairsOfChannels) {
  EXPECT_TRUE(CanUnrotate(MakeTensor("a", DType::kF16, {3, 4}), {}));
  EXPECT_FALSE(CanUnrotate(MakeTensor("a", DType::kF16, {3, 5}), {}));
  EXPECT_FALSE(CanUnrotate(MakeTensor("a", DType::kF16, {4}), {}));
  EXPECT_TRUE(CanUnrotate(MakeTensor("a", DType::kF16, {3, 5}), {.dims = 4}));
  EXPECT_FALSE(CanUnrotate(MakeTensor("a", DType::kF16, {3, 5}), {.dims = 6}));
  EXPECT_FALSE(CanUnrotate(MakeTensor("a", DType::kF16, {3, 5}), {.dims = 3}));
  EXPECT_TRUE(CanUnrotate(MakeTensor("a", DType::kF16, {3, 5}), {.dims = 4, .offset = 1}));
  EXPECT_FALSE(CanUnrotate(MakeTensor("a", DType::kF16, {3, 5}), {.dims = 4, .offset = 2}));
  EXPECT_FALSE(CanUnrotate(MakeTensor("a", DType::kF16, {3, 5}), {.offset = 5}));
}

TEST(MeanDifference, LeavesOutWhatIsNotFinite) {
  const float infinity = std::numeric_limits<float>::infinity();
  const auto a = Values(DType::kF16, {1, 2, infinity, 4});
  const auto b = Values(DType::kF16, {1.5f, 1, 3, 4});
  EXPECT_DOUBLE_EQ(MeanDifference(DType::kF16, a, b), 0.5);
  EXPECT_EQ(MeanDifference(DType::kF16, {}, {}), 0);
}

TEST(AnalyzeTensor, TheErrorOfACastIsThatOfRounding) {
  const TensorAnalysis analysis =
      AnalyzeTensor(MakeTensor("a", DType::kF32, {4}), Values(DType::kF32, {1, 1.0f + 0x1p-12f, 70000, std::nanf("")}));
  EXPECT_EQ(analysis.f16_cast.overflows, 1u);
  EXPECT_DOUBLE_EQ(analysis.f16_cast.mean_abs, 0x1p-13);
  EXPECT_DOUBLE_EQ(analysis.f16_cast.max_abs, 0x1p-12);
  EXPECT_EQ(analysis.bf16_cast.overflows, 0u);
  EXPECT_DOUBLE_EQ(analysis.bf16_cast.max_abs, 70144 - 70000);
  EXPECT_EQ(AnalyzeTensor(MakeTensor("a", DType::kF16, {1}), Values(DType::kF16, {1})).f16_cast.max_abs, 0);
}

}  // namespace
}  // namespace kvcompress
