// The scalar definition of group quantization: what the format document promises, on numbers worked out by hand.

#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <vector>

#include "core/base/half.h"
#include "core/simd/group_quant.h"

namespace kvcompress::simd {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;

constexpr int kBitWidths[] = {2, 3, 4, 5, 6, 8};

struct Quantized {
  bool ok;
  std::vector<uint16_t> scales;
  std::vector<uint8_t> codes;
  std::vector<float> decoded;
};

Quantized QuantizeFloats(int bits, size_t group, const std::vector<float>& values) {
  const GroupQuantFormat format = {DType::kF32, bits, group};
  Quantized result;
  result.scales.resize(GroupCount(group, values.size()));
  result.codes.resize(PackedBytes(bits, group, values.size()));
  result.decoded.resize(values.size());
  result.ok =
      scalar::Quantize(format, values.data(), values.size(), result.scales.data(), result.codes.data(), nullptr);
  if (result.ok) {
    scalar::Dequantize(format, result.scales.data(), result.codes.data(), values.size(), result.decoded.data());
  }
  return result;
}

TEST(PackedBytes, CountsWholeBytesOfEightCodes) {
  EXPECT_EQ(PackedBytes(4, 64, 0), 0u);
  EXPECT_EQ(PackedBytes(4, 64, 1), 4u);
  EXPECT_EQ(PackedBytes(4, 64, 64), 32u);
  EXPECT_EQ(PackedBytes(4, 64, 73), 32u + 8u);
  EXPECT_EQ(PackedBytes(3, 32, 41), 12u + 6u);
  EXPECT_EQ(PackedBytes(5, 128, 128), 80u);
  EXPECT_EQ(PackedBytes(8, 32, 33), 32u + 8u);
}

TEST(GroupScale, IsTheQuotientRoundedToF16) {
  EXPECT_EQ(GroupScale(DType::kF16, 4, 7.0f), 0x3c00);  // 1
  EXPECT_EQ(GroupScale(DType::kF16, 4, 0.0f), 0);
  EXPECT_EQ(GroupScale(DType::kF32, 8, 127.0f), 0x3c00);
  EXPECT_EQ(GroupScale(DType::kF32, 2, 0.333251953125f), 0x3555);
  // 1/7 lies between the F16 numbers 0x3092 and 0x3093, nearer to the first.
  EXPECT_EQ(GroupScale(DType::kF16, 4, 1.0f), 0x3092);
}

TEST(GroupScale, StepsUpWhereSubnormalScalesAreTooCoarse) {
  // 2^-24 / 7 rounds to 0, and 10 * 2^-24 / 7 to 1 * 2^-24, whose largest code with half a step is 7.5 * 2^-24.
  EXPECT_EQ(GroupScale(DType::kF16, 4, 0x1p-24f), 1);
  EXPECT_EQ(GroupScale(DType::kF16, 4, 7.5f * 0x1p-24f), 1);
  EXPECT_EQ(GroupScale(DType::kF16, 4, 10 * 0x1p-24f), 2);
}

// A quotient that is no normal F16 is kept as bfloat16, which the sign bit tells.
TEST(GroupScale, OfSmallAndLargeValuesIsABfloat16) {
  EXPECT_EQ(GroupScale(DType::kF32, 4, 7 * 0x1p-14f), 0x0400);
  EXPECT_EQ(GroupScale(DType::kF32, 4, 7 * 0x1.fep-15f), 0x8000 | F32ToBF16(0x1.fep-15f));
  EXPECT_EQ(GroupScale(DType::kBF16, 4, 7e-8f), 0x8000 | F32ToBF16(1e-8f));
  EXPECT_EQ(GroupScale(DType::kF32, 4, 7 * 65504.0f), 0x7bff);
  EXPECT_EQ(GroupScale(DType::kF32, 4, 7 * 65536.0f), 0x8000 | F32ToBF16(65536.0f));
  EXPECT_EQ(GroupScale(DType::kF32, 2, kMaxQuantizable), 0x8000 | F32ToBF16(0x1p127f));
  EXPECT_EQ(GroupScale(DType::kF32, 4, 0.0f), 0);
  // The smallest bfloat16 is 2^-133: nothing below a half of it is more than 0.
  EXPECT_EQ(GroupScale(DType::kBF16, 4, 0x1p-133f), 0x8001);
  EXPECT_EQ(GroupScale(DType::kF32, 4, 7.5f * 0x1p-133f), 0x8001);
  EXPECT_EQ(GroupScale(DType::kF32, 4, 0x1p-149f), 0x8001);
}

TEST(GroupScale, StepsDownWhereTheDecodedMaximumWouldOverflow) {
  // 65504 / 7 rounds to 9360, and 7 * 9360 = 65520 to infinity in F16; the number below is 9352.
  EXPECT_EQ(F16ToF32(GroupScale(DType::kF16, 4, 65504.0f)), 9352.0f);
  EXPECT_EQ(F16ToF32(GroupScale(DType::kF32, 4, 65504.0f)), 9360.0f);
  EXPECT_EQ(F16ToF32(GroupScale(DType::kF32, 2, kMaxF16)), kMaxF16);
}

TEST(GroupScale, KeepsEveryErrorWithinHalfAStep) {
  for (const int bits : kBitWidths) {
    const float reach = static_cast<float>(QMax(bits)) + 0.5f;
    for (uint32_t f16 = 0; f16 < 0x7c00; ++f16) {
      const float max_abs = F16ToF32(static_cast<uint16_t>(f16));
      for (const DType dtype : kKernelDTypes) {
        const uint16_t scale = GroupScale(dtype, bits, max_abs);
        ASSERT_TRUE(std::isfinite(ScaleOf(dtype, scale))) << bits << " bits, " << max_abs;
        ASSERT_GE(reach * ScaleOf(dtype, scale), max_abs) << bits << " bits";
        const float top = static_cast<float>(QMax(bits)) * ScaleOf(dtype, scale);
        if (dtype == DType::kF16) {
          ASSERT_LT(scale, 0x7c00) << bits << " bits, " << max_abs;
          ASSERT_LT(F32ToF16(top), 0x7c00) << bits << " bits, " << max_abs;
        }
      }
    }
  }
}

// Over all magnitudes of bfloat16 that are taken, also between those of F16.
TEST(GroupScale, KeepsEveryErrorWithinHalfAStepOverTheWholeRange) {
  for (const int bits : kBitWidths) {
    const auto qmax = static_cast<float>(QMax(bits));
    for (uint32_t upper = 0; upper <= F32ToBF16(kMaxQuantizable); ++upper) {
      for (const uint32_t lower : {0u, 1u, 0x7fffu, 0x8000u, 0xc000u}) {
        const float max_abs = std::bit_cast<float>(upper << 16 | lower);
        if (max_abs > kMaxQuantizable) continue;
        const float scale = ScaleOf(DType::kF32, GroupScale(DType::kF32, bits, max_abs));
        ASSERT_GE((qmax + 0.5f) * scale, max_abs) << bits << " bits, " << max_abs;
        ASSERT_TRUE(std::isfinite(RoundTo(DType::kBF16, qmax * scale))) << bits << " bits, " << max_abs;
        // No larger than it has to be.
        if (max_abs > 0x1p-110f) {
          ASSERT_LE(scale, max_abs / qmax * (1 + 0x1p-8f)) << bits << " bits, " << max_abs;
        }
      }
    }
  }
}

TEST(Quantize, KeepsValuesThatAreSmallOrLargeInBF16AndF32) {
  for (const float unit : {0x1p-100f, 1e-30f, 1e-8f, 3e-5f, 491500.0f / 7, 1e6f, 1e30f, 0x1p124f}) {
    const Quantized q = QuantizeFloats(4, 32, {7 * unit, -unit, 3 * unit, -7 * unit, 0});
    ASSERT_TRUE(q.ok);
    for (size_t i = 0; i < 5; ++i) {
      const float exact = std::vector<float>{7, -1, 3, -7, 0}[i] * unit;
      EXPECT_NEAR(q.decoded[i] / unit, exact / unit, 0.5) << unit;
      EXPECT_EQ(q.decoded[i] == 0, exact == 0) << unit;
    }
  }
}

TEST(Quantize, RoundsHalfAwayFromZeroAndClamps) {
  std::vector<float> values = {7, 0.5f, 1.5f, -0.5f, -1.5f, 0.49999997f, -2.5f, 3.4999998f};
  Quantized q = QuantizeFloats(4, 32, values);
  ASSERT_TRUE(q.ok);
  EXPECT_THAT(q.decoded, ElementsAre(7, 1, 2, -1, -2, 0, -3, 3));
  // A quotient of 7.5 rounds to 8: positive ones are clamped to 7, negative ones use the code -8.
  q = QuantizeFloats(4, 32, {7.5f * 0x1p-133f, -7.5f * 0x1p-133f});
  ASSERT_TRUE(q.ok);
  EXPECT_THAT(q.decoded, ElementsAre(7 * 0x1p-133f, -8 * 0x1p-133f));
}

TEST(Quantize, GivesZeroScalesAndCodesForZeros) {
  const Quantized q = QuantizeFloats(4, 32, std::vector<float>(40, -0.0f));
  ASSERT_TRUE(q.ok);
  EXPECT_THAT(q.scales, ElementsAre(0, 0));
  EXPECT_THAT(q.codes, ElementsAreArray(std::vector<uint8_t>(20, 0)));
  for (const float value : q.decoded) EXPECT_EQ(std::signbit(value), false);
}

// Eight codes, the fewest that are stored: their layout can be read off the bits.
TEST(Quantize, PacksFieldsFromTheLowBitsUp) {
  const Quantized q4 = QuantizeFloats(4, 32, {7, 1, 2, 3, -1, -2, -3, -7});
  EXPECT_THAT(q4.codes, ElementsAre(0xf7, 0xe1, 0xd2, 0x93));
  const Quantized q8 = QuantizeFloats(8, 32, {127, -127, 1, -1, 0, 2, 3, 4});
  EXPECT_THAT(q8.codes, ElementsAre(0x7f, 0x81, 1, 0xff, 0, 2, 3, 4));
  const Quantized q2 = QuantizeFloats(2, 32, {1, -1, 0, 1, -1, 0, 0, 1});
  // Byte 0 holds the codes 0, 2, 4, 6 (01 00 11 00), byte 1 the codes 1, 3, 5, 7 (11 01 00 01).
  EXPECT_THAT(q2.codes, ElementsAre(0b00110001, 0b01000111));
  const Quantized q3 = QuantizeFloats(3, 32, {3, -3, 1, -1, 0, 2, -2, 1});
  // Low two bits: 11 01 01 11 00 10 10 01; high bits: 0 1 0 1 0 0 1 0.
  EXPECT_THAT(q3.codes, ElementsAre(0b10000111, 0b01101101, 0b01001010));
  const Quantized q5 = QuantizeFloats(5, 32, {15, -15, 1, -1, 0, 2, -2, 8});
  EXPECT_THAT(q5.codes, ElementsAre(0x0f, 0x21, 0xe1, 0x8f, 0b01001010));
  const Quantized q6 = QuantizeFloats(6, 32, {31, -31, 1, -1, 0, 20, -20, 16});
  // 31 = 01 1111, -31 = 10 0001, 20 = 01 0100, -20 = 10 1100, 16 = 01 0000.
  EXPECT_THAT(q6.codes, ElementsAre(0x0f, 0x41, 0xc1, 0x0f, 0b10000001, 0b01011110));
}

TEST(Quantize, RefusesWhatNoScaleCanHold) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const int bits : kBitWidths) {
    const float limit = kMaxQuantizable;
    EXPECT_TRUE(QuantizeFloats(bits, 32, {1, -limit}).ok);
    EXPECT_FALSE(QuantizeFloats(bits, 32, {1, std::nextafter(limit, inf)}).ok);
    EXPECT_FALSE(QuantizeFloats(bits, 32, {-inf}).ok);
    EXPECT_FALSE(QuantizeFloats(bits, 32, {std::numeric_limits<float>::quiet_NaN()}).ok);
  }
}

TEST(Dequantize, GivesNaNForScalesThatAreNotFinite) {
  const GroupQuantFormat format = {DType::kF16, 4, 32};
  const uint8_t codes[16] = {};
  uint16_t values[32];
  for (const uint16_t scale : std::vector<uint16_t>{0x7c00, 0xfc00, 0x7c01, 0xffff}) {
    scalar::Dequantize(format, &scale, codes, 32, values);
    EXPECT_THAT(values, ::testing::Each(0x7e00)) << scale;
  }
}

TEST(FindOutOfRange, FindsTheFirst) {
  std::vector<float> values(300, 5.0f);
  EXPECT_EQ(FindOutOfRange(DType::kF32, values.data(), values.size(), 5.0f), 300u);
  values[200] = -5.0000005f;
  EXPECT_EQ(FindOutOfRange(DType::kF32, values.data(), values.size(), 5.0f), 200u);
  values[137] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(FindOutOfRange(DType::kF32, values.data(), values.size(), 5.0f), 137u);
  values[0] = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(FindOutOfRange(DType::kF32, values.data(), values.size(), 5.0f), 0u);
  EXPECT_EQ(FindOutOfRange(DType::kF32, values.data(), 0, 5.0f), 0u);
  const uint16_t halves[] = {0x3c00, 0x7bff, 0x7c00};
  EXPECT_EQ(FindOutOfRange(DType::kF16, halves, 3, kMaxQuantizable), 2u);
}

TEST(FindOutOfRange, FindsOneAnywhere) {
  for (const DType dtype : kValueDTypes) {
    for (const size_t count : {1, 255, 256, 257, 700}) {
      for (size_t at = 0; at < count; ++at) {
        std::vector<std::byte> values(count * DTypeSize(dtype));
        for (size_t i = 0; i < count; ++i) StoreFromF32(dtype, i < at ? -3.0f : 7.0f, values.data(), i);
        EXPECT_EQ(FindOutOfRange(dtype, values.data(), count, 5.0f), at);
        EXPECT_EQ(FindOutOfRange(dtype, values.data(), count, 7.0f), count);
      }
    }
  }
}

}  // namespace
}  // namespace kvcompress::simd
