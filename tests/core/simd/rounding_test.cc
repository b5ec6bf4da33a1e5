// The kernels multiply by a reciprocal where the definition divides. These tests go through all values of 16 bits, and
// through the neighbourhood of every tie for F32, at many scales.

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "core/base/half.h"
#include "core/simd/group_quant.h"
#include "tests/core/simd/with_target.h"

namespace kvcompress::simd {
namespace {

using ::kvcompress::testing::UsableTargets;
using ::kvcompress::testing::WithTarget;

constexpr size_t kSmallestGroup = 32;

class RoundingTest : public ::testing::TestWithParam<std::tuple<int64_t, int>> {
 protected:
  int bits() const { return std::get<1>(GetParam()); }

  // Quantizes groups that begin with `max_abs`, which sets their scale, and go on with `values`.
  void ExpectSame(DType dtype, float max_abs, const std::vector<float>& values) {
    std::vector<uint8_t> groups;
    size_t count = 0;
    const auto append = [&](float value) {
      groups.resize((count + 1) * DTypeSize(dtype));
      StoreFromF32(dtype, value, groups.data(), count++);
    };
    for (const float value : values) {
      if (count % kSmallestGroup == 0) append(max_abs);
      append(value);
    }
    while (count % (16 * kSmallestGroup) != 0) append(0.0f);
    const GroupQuantFormat format = {dtype, bits(), kSmallestGroup};
    std::vector<uint8_t> scales(2 * GroupCount(kSmallestGroup, count)),
        codes(PackedBytes(bits(), kSmallestGroup, count));
    std::vector<uint8_t> got_scales(scales.size()), got_codes(codes.size());
    ASSERT_TRUE(scalar::Quantize(format, groups.data(), count, scales.data(), codes.data(), nullptr));
    const WithTarget with(std::get<0>(GetParam()));
    ASSERT_TRUE(Quantize(format, groups.data(), count, got_scales.data(), got_codes.data(), nullptr));
    ASSERT_EQ(scales, got_scales) << max_abs;
    ASSERT_EQ(codes, got_codes) << max_abs;
  }

  // Scales over the whole range, with simple and with awkward mantissas.
  std::vector<uint16_t> Scales() const {
    std::vector<uint16_t> scales = {1, 2, 3, 7, 8, 9, 129, 500, 1023, 1024, 1025};
    std::mt19937 random(3);
    for (uint32_t exponent = 1; exponent < 30; exponent += 3) {
      for (const uint32_t mantissa : {0u, 1u, 511u, 1023u, static_cast<uint32_t>(random() % 1024)}) {
        scales.push_back(static_cast<uint16_t>(exponent << 10 | mantissa));
      }
    }
    return scales;
  }
};

TEST_P(RoundingTest, EveryF16AtManyScales) {
  for (const uint16_t scale : Scales()) {
    const float max_abs = F16ToF32(F32ToF16(std::fmin(static_cast<float>(QMax(bits())) * F16ToF32(scale), kMaxF16)));
    std::vector<float> values;
    for (uint32_t f16 = 0; f16 < 0x7c00 && F16ToF32(static_cast<uint16_t>(f16)) <= max_abs; ++f16) {
      values.push_back(F16ToF32(static_cast<uint16_t>(f16)));
      values.push_back(-values.back());
    }
    ExpectSame(DType::kF16, max_abs, values);
    if (HasFatalFailure()) return;
  }
}

TEST_P(RoundingTest, EveryBF16AtManyScales) {
  std::vector<float> scales;
  for (const uint16_t scale : Scales()) scales.push_back(F16ToF32(scale));
  constexpr uint16_t kSmall[] = {0x0001, 0x0003, 0x007f, 0x0080, 0x0081, 0x00ff, 0x20ff};
  for (const uint16_t small : kSmall) scales.push_back(BF16ToF32(small));
  for (const float scale : scales) {
    const float max_abs = BF16ToF32(F32ToBF16(static_cast<float>(QMax(bits())) * scale));
    std::vector<float> values;
    for (uint32_t bf16 = 0; BF16ToF32(static_cast<uint16_t>(bf16)) <= max_abs; ++bf16) {
      values.push_back(BF16ToF32(static_cast<uint16_t>(bf16)));
      values.push_back(-values.back());
    }
    ExpectSame(DType::kBF16, max_abs, values);
    if (HasFatalFailure()) return;
  }
}

TEST_P(RoundingTest, F32AboutEveryTieAtManyScales) {
  for (const uint16_t scale_bits : Scales()) {
    const float scale = F16ToF32(scale_bits);
    const float max_abs = static_cast<float>(QMax(bits())) * scale;
    std::vector<float> values;
    for (int k = 0; k < QMax(bits()); ++k) {
      const float tie = (static_cast<float>(k) + 0.5f) * scale;
      float below = tie, above = tie;
      for (int ulp = 0; ulp < 4; ++ulp) {
        values.insert(values.end(), {below, -below, above, -above});
        below = std::nextafter(below, 0.0f);
        above = std::nextafter(above, 2 * tie);
      }
    }
    ExpectSame(DType::kF32, max_abs, values);
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(All, RoundingTest,
                         ::testing::Combine(::testing::ValuesIn(UsableTargets()), ::testing::Values(2, 3, 4, 5, 6, 8)),
                         [](const auto& param) {
                           return std::string(hwy::TargetName(std::get<0>(param.param))) + "_" +
                                  std::to_string(std::get<1>(param.param)) + "bits";
                         });

}  // namespace
}  // namespace kvcompress::simd
