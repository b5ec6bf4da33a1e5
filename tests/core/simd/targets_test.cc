// Every compiled instruction set that this CPU has gives the bytes of the scalar definition, and touches no byte that
// is not its own.

#include <gmock/gmock.h>
#include <hwy/detect_targets.h>
#include <hwy/targets.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "core/base/half.h"
#include "core/simd/group_quant.h"
#include "tests/core/simd/guarded.h"
#include "tests/core/simd/with_target.h"
#include "tests/testing/values.h"

namespace kvcompress::simd {
namespace {

using ::kvcompress::testing::Distribution;
using ::kvcompress::testing::Guarded;
using ::kvcompress::testing::TargetAndDTypeName;
using ::kvcompress::testing::UsableTargets;
using ::kvcompress::testing::WithTarget;

constexpr int kAllBits[] = {2, 3, 4, 5, 6, 8};
constexpr size_t kAllGroups[] = {32, 64, 128};
constexpr float kFloatInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

#if HWY_ARCH_X86
TEST(Targets, X86HasKernelsForSse4Avx2AndAvx512) {
  constexpr int64_t kWanted = HWY_SSE4 | HWY_AVX2 | HWY_AVX3;
  EXPECT_EQ(HWY_TARGETS & kWanted, kWanted);
}
#endif

TEST(Targets, EachOneIsReallyRun) {
  ASSERT_FALSE(UsableTargets().empty());
  for (const int64_t target : UsableTargets()) {
    const WithTarget with(target);
    EXPECT_STREQ(TargetName(), hwy::TargetName(target));
  }
}

class TargetsTest : public ::testing::TestWithParam<std::tuple<int64_t, DType>> {
 protected:
  int64_t target() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }

  // The largest value of the dtype that can be quantized.
  float LargestQuantizable() const { return std::fmin(kMaxQuantizable, MaxFinite(dtype())); }

  // Quantizes and decodes between guard pages, with the target and with the definition, and compares.
  void ExpectSame(const GroupQuantFormat& format, const void* values, size_t count, Guarded::Against against) {
    SCOPED_TRACE(std::to_string(format.bits) + " bits, groups of " + std::to_string(format.group) + ", " +
                 std::to_string(count) + " values");
    const size_t scale_bytes = 2 * GroupCount(format.group, count);
    const size_t code_bytes = PackedBytes(format.bits, format.group, count);
    const Guarded in(values, count * DTypeSize(format.dtype), against);
    std::vector<uint8_t> scales(scale_bytes), codes(code_bytes), decoded(in.size());
    ErrorSums sums;
    ASSERT_TRUE(scalar::Quantize(format, in.data(), count, scales.data(), codes.data(), &sums));
    scalar::Dequantize(format, scales.data(), codes.data(), count, decoded.data());

    const WithTarget with(target());
    for (const bool with_sums : {false, true}) {
      Guarded got_scales(scale_bytes, against), got_codes(code_bytes, against);
      ErrorSums got_sums;
      ASSERT_TRUE(
          Quantize(format, in.data(), count, got_scales.data(), got_codes.data(), with_sums ? &got_sums : nullptr));
      ASSERT_TRUE(std::ranges::equal(got_scales.bytes(), scales));
      ASSERT_TRUE(std::ranges::equal(got_codes.bytes(), codes));
      if (with_sums) ExpectClose(got_sums, sums);
    }
    const Guarded scales_in(scales.data(), scale_bytes, against), codes_in(codes.data(), code_bytes, against);
    Guarded got(in.size(), against);
    Dequantize(format, scales_in.data(), codes_in.data(), count, got.data());
    ASSERT_TRUE(std::ranges::equal(got.bytes(), decoded));
  }

  static void ExpectClose(const ErrorSums& got, const ErrorSums& want) {
    constexpr double kRelative = 1e-6;
    const double n = static_cast<double>(want.count);
    EXPECT_EQ(got.count, want.count);
    EXPECT_EQ(got.max_abs_error, want.max_abs_error);
    EXPECT_NEAR(got.sum, want.sum, kRelative * std::sqrt(n * want.sum_squares));
    EXPECT_NEAR(got.sum_squares, want.sum_squares, kRelative * want.sum_squares);
    EXPECT_NEAR(got.sum_deviations, want.sum_deviations, 1e-3 * want.sum_deviations);
    EXPECT_NEAR(got.sum_error_squares, want.sum_error_squares, kRelative * want.sum_error_squares);
    EXPECT_NEAR(got.sum_abs_error, want.sum_abs_error, kRelative * want.sum_abs_error);
    EXPECT_NEAR(got.sum_cross, want.sum_cross, kRelative * std::sqrt(want.sum_squares * want.sum_error_squares));
  }
};

// Sizes about the short group, the tile of 16 groups and its halves.
std::vector<size_t> Sizes(size_t group) {
  std::vector<size_t> sizes;
  for (size_t n = 0; n <= 300; ++n) sizes.push_back(n);
  for (const size_t groups : {7, 8, 9, 15, 16, 17, 31, 32, 33, 40}) {
    for (const size_t extra : {size_t{0}, size_t{1}, group - 1}) sizes.push_back(groups * group + extra);
  }
  return sizes;
}

TEST_P(TargetsTest, SameBytesAtEverySize) {
  const auto values = testing::MakeValues(dtype(), 128 * 42, Distribution::kOutliers);
  for (const int bits : kAllBits) {
    for (const size_t group : kAllGroups) {
      for (const size_t count : Sizes(group)) {
        const auto against = count % 2 ? Guarded::Against::kPageBefore : Guarded::Against::kPageAfter;
        ExpectSame({dtype(), bits, group}, values.data(), count, against);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(TargetsTest, SameBytesForEveryDistribution) {
  constexpr size_t kCount = 128 * 32 + 77;
  for (const Distribution distribution : testing::kAllDistributions) {
    SCOPED_TRACE(static_cast<int>(distribution));
    const auto values = testing::MakeValues(dtype(), kCount, distribution, 7);
    for (const int bits : kAllBits) {
      for (const size_t group : kAllGroups) {
        ExpectSame({dtype(), bits, group}, values.data(), kCount, Guarded::Against::kPageAfter);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Each group at a magnitude of its own, from subnormal to the largest, with ties among the values.
TEST_P(TargetsTest, SameBytesAtEveryMagnitude) {
  std::mt19937 random(11);
  for (const int bits : kAllBits) {
    const float top = LargestQuantizable();
    for (const size_t group : kAllGroups) {
      std::vector<uint8_t> values(group * 400 * DTypeSize(dtype()));
      for (size_t g = 0; g < 400; ++g) {
        const float scale = std::ldexp(static_cast<float>(1 + random() % 2047), static_cast<int>(g % 50) - 34);
        for (size_t i = 0; i < group; ++i) {
          const int halves =
              static_cast<int>(random() % static_cast<unsigned>(4 * QMax(bits) + 3)) - 2 * QMax(bits) - 1;
          const float value = std::fmin(std::fmax(static_cast<float>(halves) * 0.5f * scale, -top), top);
          StoreFromF32(dtype(), value, values.data(), g * group + i);
        }
      }
      ExpectSame({dtype(), bits, group}, values.data(), group * 400, Guarded::Against::kPageBefore);
      if (HasFatalFailure()) return;
    }
  }
}

// Dtypes with values whose squares leave the range of binary32.
class WideTargetsTest : public TargetsTest {};

// Whole tensors so small that the squares of their values are no binary32 numbers.
TEST_P(WideTargetsTest, SumsHoldForTinyValues) {
  constexpr size_t kCount = 64 * 20;
  for (const float factor : {0x1p-49f, 0x1p-60f, 0x1p-100f}) {
    auto values = testing::MakeValues(dtype(), kCount, Distribution::kGaussian);
    for (size_t i = 0; i < kCount; ++i) {
      StoreFromF32(dtype(), LoadAsF32(dtype(), values.data(), i) * factor, values.data(), i);
    }
    ExpectSame({dtype(), 4, 64}, values.data(), kCount, Guarded::Against::kPageAfter);
  }
}

// Groups of any magnitude, with subnormal values beside others.
TEST_P(WideTargetsTest, SameBytesForSubnormalValues) {
  for (const size_t group : kAllGroups) {
    for (const int bits : kAllBits) {
      for (const uint32_t seed : {1, 2, 3}) {
        const auto values = testing::MakeMagnitudes(dtype(), group * 150 + 9, group, LargestQuantizable(), seed);
        ExpectSame({dtype(), bits, group}, values.data(), group * 150 + 9, Guarded::Against::kPageAfter);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// What has a code of its own is not lost, and the rest, which is subnormal, is.
TEST_P(WideTargetsTest, ErrorsOfSubnormalValuesAloneAreFound) {
  constexpr size_t kCount = 64 * 20;
  std::vector<uint8_t> values(kCount * DTypeSize(dtype()));
  for (size_t i = 0; i < kCount; ++i) StoreFromF32(dtype(), i % 64 == 5 ? 7.0f : 0x1p-130f, values.data(), i);
  ExpectSame({dtype(), 4, 64}, values.data(), kCount, Guarded::Against::kPageAfter);
}

// Of values that are not subnormal themselves.
TEST_P(WideTargetsTest, SubnormalErrorsAloneAreFound) {
  constexpr size_t kCount = 64 * 20;
  std::vector<uint8_t> values(kCount * DTypeSize(dtype()));
  for (size_t i = 0; i < kCount; ++i) {
    const float value = i < 64 ? (i % 2 == 0 ? 7.0f : -7.0f) : i % 64 == 0 ? 7 * 0x1p-126f : 1.25f * 0x1p-126f;
    StoreFromF32(dtype(), value, values.data(), i);
  }
  ExpectSame({dtype(), 4, 64}, values.data(), kCount, Guarded::Against::kPageAfter);
}

TEST_P(TargetsTest, SameBytesAtEveryAlignment) {
  constexpr size_t kCount = 64 * 20 + 5;
  const auto values = testing::MakeValues(dtype(), kCount, Distribution::kGaussian);
  for (const int bits : kAllBits) {
    const GroupQuantFormat format = {dtype(), bits, 64};
    const size_t code_bytes = PackedBytes(bits, 64, kCount);
    const size_t scale_bytes = 2 * GroupCount(64, kCount);
    std::vector<uint8_t> scales(scale_bytes), codes(code_bytes), decoded(values.size());
    ASSERT_TRUE(scalar::Quantize(format, values.data(), kCount, scales.data(), codes.data(), nullptr));
    scalar::Dequantize(format, scales.data(), codes.data(), kCount, decoded.data());
    const WithTarget with(target());
    for (size_t offset = 1; offset < 64; offset += 6) {
      std::vector<uint8_t> in(values.size() + offset), got_scales(scale_bytes + offset), got_codes(code_bytes + offset),
          got(values.size() + offset);
      std::memcpy(in.data() + offset, values.data(), values.size());
      ASSERT_TRUE(
          Quantize(format, in.data() + offset, kCount, got_scales.data() + offset, got_codes.data() + offset, nullptr));
      ASSERT_EQ(std::memcmp(got_scales.data() + offset, scales.data(), scale_bytes), 0) << bits << " " << offset;
      ASSERT_EQ(std::memcmp(got_codes.data() + offset, codes.data(), code_bytes), 0) << bits << " " << offset;
      Dequantize(format, got_scales.data() + offset, got_codes.data() + offset, kCount, got.data() + offset);
      ASSERT_EQ(std::memcmp(got.data() + offset, decoded.data(), decoded.size()), 0) << bits << " " << offset;
    }
  }
}

TEST_P(TargetsTest, RunsAreAsOneRun) {
  constexpr size_t kGroup = 64;
  const size_t count = kGroup * 101 + 13;
  for (const Distribution distribution : testing::kAllDistributions) {
    const auto values = testing::MakeValues(dtype(), count, distribution, 3);
    for (const int bits : {3, 4, 8}) {
      const GroupQuantFormat format{dtype(), bits, kGroup};
      std::vector<uint8_t> scales(2 * GroupCount(kGroup, count)), codes(PackedBytes(bits, kGroup, count));
      std::vector<uint8_t> got_scales(scales.size()), got_codes(codes.size());
      const WithTarget with(target());
      ErrorSums sums, got_sums;
      ASSERT_TRUE(Quantize(format, values.data(), count, scales.data(), codes.data(), &sums));
      std::vector<ValueRun> runs;
      size_t at = 0;
      for (const size_t groups : {1, 16, 0, 17, 2, 33, 1, 1}) {
        runs.push_back({values.data() + at * DTypeSize(dtype()), groups * kGroup});
        at += groups * kGroup;
      }
      runs.push_back({values.data() + at * DTypeSize(dtype()), count - at});
      ASSERT_TRUE(QuantizeRuns(format, runs, got_scales.data(), got_codes.data(), &got_sums));
      EXPECT_EQ(got_scales, scales);
      EXPECT_EQ(got_codes, codes);
      EXPECT_EQ(std::memcmp(&got_sums, &sums, sizeof(sums)), 0);
    }
  }
}

TEST_P(TargetsTest, DecodesAnyBits) {
  for (const int bits : kAllBits) {
    for (const size_t group : kAllGroups) {
      const GroupQuantFormat format = {dtype(), bits, group};
      constexpr size_t kGroups = 0x10000;  // all scales there are
      std::vector<uint16_t> scales(kGroups);
      for (size_t g = 0; g < kGroups; ++g) scales[g] = static_cast<uint16_t>(g);
      const auto codes = testing::MakeBits(PackedBytes(bits, group, kGroups * group), 5);
      std::vector<uint8_t> want(kGroups * group * DTypeSize(dtype())), got(want.size());
      scalar::Dequantize(format, scales.data(), codes.data(), kGroups * group, want.data());
      const WithTarget with(target());
      Dequantize(format, scales.data(), codes.data(), kGroups * group, got.data());
      ASSERT_EQ(std::memcmp(got.data(), want.data(), want.size()), 0) << bits << " bits, groups of " << group;
    }
  }
}

TEST_P(TargetsTest, RefusesABadValueAnywhere) {
  const WithTarget with(target());
  for (const int bits : {4, 8}) {
    std::vector<float> bad = {kFloatInf, -kFloatInf, kNaN, -kNaN};
    if (dtype() == DType::kF32) bad.push_back(std::nextafter(kMaxQuantizable, kFloatInf));
    if (dtype() == DType::kBF16) bad.push_back(kMaxQuantizable * 1.01f);
    const GroupQuantFormat format = {dtype(), bits, 32};
    constexpr size_t kCount = 32 * 17 + 9;
    auto values = testing::MakeValues(dtype(), kCount, Distribution::kGaussian);
    std::vector<uint8_t> scales(2 * GroupCount(32, kCount)), codes(PackedBytes(bits, 32, kCount));
    ErrorSums sums;
    for (size_t i = 0; i < kCount; ++i) {
      const float kept = LoadAsF32(dtype(), values.data(), i);
      for (const float value : bad) {
        StoreFromF32(dtype(), value, values.data(), i);
        ASSERT_FALSE(Quantize(format, values.data(), kCount, scales.data(), codes.data(), nullptr))
            << i << " " << value;
        ASSERT_FALSE(Quantize(format, values.data(), kCount, scales.data(), codes.data(), &sums)) << i << " " << value;
      }
      StoreFromF32(dtype(), kept, values.data(), i);
    }
    ASSERT_TRUE(Quantize(format, values.data(), kCount, scales.data(), codes.data(), nullptr));
  }
}

INSTANTIATE_TEST_SUITE_P(All, TargetsTest,
                         ::testing::Combine(::testing::ValuesIn(UsableTargets()),
                                            ::testing::Values(DType::kF16, DType::kBF16, DType::kF32)),
                         TargetAndDTypeName);
INSTANTIATE_TEST_SUITE_P(All, WideTargetsTest,
                         ::testing::Combine(::testing::ValuesIn(UsableTargets()),
                                            ::testing::Values(DType::kBF16, DType::kF32)),
                         TargetAndDTypeName);

}  // namespace
}  // namespace kvcompress::simd
