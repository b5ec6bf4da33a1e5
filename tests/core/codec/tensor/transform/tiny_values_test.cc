#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "core/base/half.h"
#include "core/codec/tensor/transform/block.h"
#include "core/simd/rotary.h"
#include "tests/testing/values.h"

// Values that are next to nothing beside a step are coded without a look at most of them.
namespace kvcompress {
namespace {

using Bytes = std::vector<std::byte>;

constexpr size_t kTokens = 300, kChannels = 64, kCount = 2 * kTokens * kChannels;

// Of two sequences, whose tokens may be turned by their position.
std::vector<float> Values(bool are_turned) {
  std::mt19937 random(3);
  std::vector<float> values(kCount);
  for (size_t i = 0; i < kCount; ++i) {
    values[i] = std::cos(static_cast<float>(i % kChannels)) + testing::Bell(random) / 16;
  }
  if (!are_turned) return values;
  simd::RotaryTable table;
  table.Make({.theta = 10000}, kChannels, 0, kTokens);
  for (size_t at = 0; at < kCount; at += kTokens * kChannels) {
    simd::TurnRows(table, 0, simd::RotaryPairs::kHalf, simd::RotaryTurn::kForward, values.data() + at, kTokens,
                   kChannels);
  }
  return values;
}

struct Coded {
  Bytes side, words, decoded;
  simd::RotaryGain rotary;
};

Coded Code(const TransformFormat& format, DType dtype, float step, const std::vector<float>& values, float factor) {
  const TensorDesc tensor = testing::MakeTensor("layer_0_key", dtype, {1, 2, kTokens, kChannels});
  Bytes bytes(kCount * DTypeSize(dtype));
  for (size_t i = 0; i < kCount; ++i) StoreFromF32(dtype, values[i] * factor, bytes.data(), i);
  const TransformLayout layout = LayoutOf(format, tensor, {TokenLayoutOf(tensor), 0}, kCount);
  Coded coded{Bytes(MaxSideBytes(kCount, 4)), Bytes(MaxWordBytes(kCount, 4)), Bytes(bytes.size()), {}};
  const auto sizes = EncodeTransform(format, true, step, {dtype, layout, kCount, bytes.data()}, coded.side.data(),
                                     coded.words.data(), coded.decoded.data());
  EXPECT_TRUE(sizes.has_value());
  coded.side.resize(sizes->side);
  coded.words.resize(sizes->words);
  coded.rotary = sizes->rotary;
  return coded;
}

// What is coded of them is what the usual way makes of larger values and a step that is larger by as much.
TEST(TinyValuesTest, AreCodedAsTheUsualWayCodesThem) {
  constexpr float kLarger = 0x1p16f;
  const std::vector<float> plain = Values(false);
  const std::vector<float> turned = Values(true);
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    for (const bool trellis : {false, true}) {
      for (const float theta : {0.0f, 10000.0f}) {
        for (const std::vector<float>* values : {&plain, &turned}) {
          SCOPED_TRACE(::testing::Message()
                       << DTypeName(dtype) << ' ' << trellis << ' ' << theta << ' ' << (values == &turned));
          const TransformFormat format{.trellis = trellis, .rotary = {.theta = theta}};
          const Coded tiny = Code(format, dtype, 0x1p-10f, *values, 0x1p-60f);
          const Coded usual = Code(format, dtype, kLarger * 0x1p-10f, *values, kLarger * 0x1p-60f);
          constexpr size_t kStep = 1, kAfterStep = 5;  // in the header
          EXPECT_EQ(tiny.side.size(), usual.side.size());
          EXPECT_NE(Bytes(tiny.side.begin() + kStep, tiny.side.begin() + kAfterStep),
                    Bytes(usual.side.begin() + kStep, usual.side.begin() + kAfterStep));
          EXPECT_EQ(Bytes(tiny.side.begin() + kAfterStep, tiny.side.end()),
                    Bytes(usual.side.begin() + kAfterStep, usual.side.end()));
          EXPECT_EQ(tiny.words, usual.words);
          EXPECT_EQ(tiny.decoded, usual.decoded);
          EXPECT_EQ(tiny.rotary.turned, usual.rotary.turned);
          EXPECT_EQ(tiny.rotary.bits, usual.rotary.bits);
          EXPECT_EQ(tiny.rotary.turned > 0, theta > 0 && values == &turned);
        }
      }
    }
  }
}

// Subnormal values are loaded as they are, by the smallest steps: whether they turn is seen.
TEST(TinyValuesTest, SubnormalValuesTellWhetherTheyTurn) {
  std::vector<float> values = Values(true);
  for (float& value : values) value = std::round(8 * value) / 8;  // subnormal values have room for this
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    const TransformFormat format{.trellis = true, .rotary = {.theta = 10000}};
    const Coded subnormal = Code(format, dtype, kMinStep, values, 0x1p-128f);
    const Coded usual = Code(format, dtype, kMinStep * 0x1p64f, values, 0x1p-128f * 0x1p64f);
    EXPECT_EQ(subnormal.words, usual.words) << DTypeName(dtype);
    EXPECT_GT(subnormal.rotary.turned, 0) << DTypeName(dtype);
    EXPECT_EQ(subnormal.rotary.turned, usual.rotary.turned) << DTypeName(dtype);
    EXPECT_EQ(subnormal.rotary.bits, usual.rotary.bits) << DTypeName(dtype);
  }
}

}  // namespace
}  // namespace kvcompress
