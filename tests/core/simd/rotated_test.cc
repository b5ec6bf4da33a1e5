// Every compiled instruction set that this CPU has gives the bytes of the scalar definition, and touches no byte that
// is not its own.

#include <gmock/gmock.h>
#include <hwy/targets.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "core/base/half.h"
#include "core/simd/rotated_quant.h"
#include "tests/core/simd/guarded.h"
#include "tests/core/simd/with_target.h"
#include "tests/testing/values.h"

namespace kvcompress::simd {
namespace {

using ::kvcompress::testing::Distribution;
using ::kvcompress::testing::Guarded;
using ::kvcompress::testing::kAllDistributions;
using ::kvcompress::testing::MakeValues;
using ::kvcompress::testing::TargetAndDTypeName;
using ::kvcompress::testing::UsableTargets;
using ::kvcompress::testing::WithTarget;

constexpr size_t kRows[] = {16, 17, 32, 48, 64, 80, 96, 100, 112, 128, 192, 256, 320, 512, 576, 1008, 1024};

class RotatedTargetsTest : public ::testing::TestWithParam<std::tuple<int64_t, DType>> {
 protected:
  int64_t target() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }

  // Quantizes and decodes between guard pages, with the target and with the definition, and compares.
  void ExpectSame(const RotatedFormat& format, const void* values, size_t count) {
    for (const Guarded::Against against : {Guarded::Against::kPageBefore, Guarded::Against::kPageAfter}) {
      const Guarded in(values, count * DTypeSize(dtype()), against);
      const size_t scale_bytes = 2 * RotatedRows(format.row, count);
      std::vector<uint8_t> scales(scale_bytes), codes(count), decoded(in.size()), of_encoder(in.size());
      ASSERT_TRUE(scalar::QuantizeRotated(format, in.data(), count, scales.data(), codes.data(), of_encoder.data()));
      scalar::DequantizeRotated(format, scales.data(), codes.data(), count, decoded.data());
      ASSERT_EQ(of_encoder, decoded);
      const WithTarget with(target());
      Guarded got_scales(scale_bytes, against), got_codes(count, against), got(in.size(), against);
      for (uint8_t* of : {static_cast<uint8_t*>(nullptr), got.data()}) {
        ASSERT_TRUE(QuantizeRotated(format, in.data(), count, got_scales.data(), got_codes.data(), of));
        ASSERT_TRUE(std::ranges::equal(got_scales.bytes(), scales));
        ASSERT_TRUE(std::ranges::equal(got_codes.bytes(), codes));
      }
      ASSERT_TRUE(std::ranges::equal(got.bytes(), decoded));
      DequantizeRotated(format, got_scales.data(), got_codes.data(), count, got.data());
      ASSERT_TRUE(std::ranges::equal(got.bytes(), decoded));
    }
  }
};

TEST_P(RotatedTargetsTest, GivesTheBytesOfTheDefinition) {
  for (const size_t row : kRows) {
    for (const int bits : {2, 3, 4}) {
      for (const Distribution distribution : kAllDistributions) {
        for (const size_t count : {row, 5 * row, 7 * row + 3}) {
          SCOPED_TRACE(std::to_string(bits) + " bits, rows of " + std::to_string(row) + ", " + std::to_string(count));
          const auto values = MakeValues(dtype(), count, distribution, static_cast<uint32_t>(row));
          ExpectSame({dtype(), bits, row}, values.data(), count);
        }
      }
    }
  }
}

// Kernels take several rows at once, of which any may need care.
TEST_P(RotatedTargetsTest, RowsOfAnySizeAmongOthers) {
  const float largest = std::min(MaxFinite(dtype()), kMaxRotatable);
  const float sizes[] = {1, largest, 0, -0.0f, largest / 4, 0x1p-24f, 1, 0x1p-70f, 0x1p-130f, 0x1p-149f, largest / 64};
  std::mt19937 random(9);
  std::normal_distribution<float> normal;
  for (const size_t row : {size_t{64}, size_t{96}, size_t{128}, size_t{256}, size_t{512}}) {
    const size_t count = 67 * row;
    std::vector<std::byte> values(count * DTypeSize(dtype()));
    for (size_t r = 0; r < 67; ++r) {
      // Usual ones are as many as all others, and of each of these pairs one is all over its row, one in one channel.
      const float size = random() % 2 == 0 ? 1 : sizes[random() % std::size(sizes)];
      const size_t every = random() % 2 == 0 ? 1 : row;
      for (size_t i = 0; i < row; ++i) {
        const float x = i % every == 0 ? std::clamp(size * normal(random), -largest, largest) : 0;
        StoreFromF32(dtype(), x, values.data(), r * row + i);
      }
    }
    for (const int bits : {2, 4}) ExpectSame({dtype(), bits, row}, values.data(), count);
  }
}

// Rows of any magnitude, whose own values are of many, and so many small ones that they are quantized apart.
TEST_P(RotatedTargetsTest, SameBytesForSubnormalValues) {
  const float largest = std::min(MaxFinite(dtype()), kMaxRotatable);
  for (const size_t row : {size_t{64}, size_t{80}, size_t{128}, size_t{256}, size_t{512}, size_t{1024}}) {
    for (const size_t run : {row, 3 * row}) {
      const auto seed = static_cast<uint32_t>(row + run);
      auto values = testing::MakeMagnitudes(dtype(), 200 * row, run, largest, seed);
      const auto small = testing::MakeMagnitudes(dtype(), 130 * row, run, 0x1p-66f, seed);
      std::ranges::copy(small, values.begin());
      for (const int bits : {2, 4}) ExpectSame({dtype(), bits, row}, values.data(), 200 * row);
    }
  }
}

TEST_P(RotatedTargetsTest, ManyRowsAmongWhichAreZerosAndTinyValues) {
  for (const size_t row : {size_t{64}, size_t{96}, size_t{128}, size_t{256}}) {
    const size_t count = 39 * row;
    auto values = MakeValues(dtype(), count, Distribution::kGaussian, static_cast<uint32_t>(row));
    for (size_t i = 0; i < row; ++i) {
      StoreFromF32(dtype(), 0, values.data(), 5 * row + i);
      StoreFromF32(dtype(), 0x1p-24f * static_cast<float>(i % 7), values.data(), 18 * row + i);
    }
    ExpectSame({dtype(), 4, row}, values.data(), count);
  }
}

TEST_P(RotatedTargetsTest, RowsOfEverySizeFromZeroToTheLargest) {
  const float largest = std::min(MaxFinite(dtype()), kMaxRotatable);
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  constexpr size_t kRow = 96;
  std::vector<std::byte> values;
  size_t count = 0;
  for (float size = largest; size > 0; size /= 8, count += kRow) {
    values.resize((count + kRow) * DTypeSize(dtype()));
    for (size_t i = count; i < count + kRow; ++i) {
      const float x = std::clamp(size * normal(random) / 2, -largest, largest);
      StoreFromF32(dtype(), x, values.data(), i);
    }
  }
  for (const size_t row : {size_t{32}, kRow}) ExpectSame({dtype(), 4, row}, values.data(), count);
}

TEST_P(RotatedTargetsTest, AnyCodesAndScalesDecodeToTheSame) {
  std::mt19937 random(5);
  for (const size_t row : kRows) {
    for (const int bits : {2, 3, 4}) {
      const size_t count = 40 * row;
      std::vector<uint16_t> scales(40);
      for (uint16_t& scale : scales) {
        do scale = static_cast<uint16_t>(random());
        while (!std::isfinite(RotatedScaleOf(scale)));
      }
      std::vector<uint8_t> codes(count), decoded(count * DTypeSize(dtype())), got(decoded.size());
      for (uint8_t& code : codes) code = static_cast<uint8_t>(random() & ((1u << bits) - 1));
      scalar::DequantizeRotated({dtype(), bits, row}, scales.data(), codes.data(), count, decoded.data());
      const WithTarget with(target());
      DequantizeRotated({dtype(), bits, row}, scales.data(), codes.data(), count, got.data());
      ASSERT_EQ(got, decoded) << row << " " << bits;
    }
  }
}

TEST_P(RotatedTargetsTest, RefusesWhatTheDefinitionRefuses) {
  const WithTarget with(target());
  for (const float bad : {NAN, INFINITY, -INFINITY, 0x1p121f}) {
    if (std::isfinite(bad) && dtype() == DType::kF16) continue;
    for (const size_t at : {size_t{0}, size_t{127}, size_t{128}, size_t{500}}) {
      auto values = MakeValues(dtype(), 512, Distribution::kGaussian, 1);
      StoreFromF32(dtype(), bad, values.data(), at);
      std::vector<uint8_t> scales(8), codes(512);
      EXPECT_FALSE(QuantizeRotated({dtype(), 4, 128}, values.data(), 512, scales.data(), codes.data())) << bad;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, RotatedTargetsTest,
                         ::testing::Combine(::testing::ValuesIn(UsableTargets()), ::testing::ValuesIn(kKernelDTypes)),
                         TargetAndDTypeName);

}  // namespace
}  // namespace kvcompress::simd
