#include "core/simd/value_limits.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <tuple>
#include <vector>

#include "core/base/half.h"
#include "core/simd/key_counts.h"
#include "tests/core/simd/with_target.h"
#include "tests/testing/values.h"

namespace kvcompress::simd {
namespace {

using ::kvcompress::testing::TargetAndDTypeName;
using ::kvcompress::testing::UsableTargets;
using ::kvcompress::testing::WithTarget;

class ValueLimitsTest : public ::testing::TestWithParam<std::tuple<int64_t, DType>> {
 protected:
  DType dtype() const { return std::get<1>(GetParam()); }
  size_t width() const { return DTypeSize(dtype()); }

  float At(const std::vector<std::byte>& values, size_t i) const { return LoadAsF32(dtype(), values.data(), i); }
  bool SameBits(const std::vector<std::byte>& a, size_t i, const void* b) const {
    return std::memcmp(&a[i * width()], b, width()) == 0;
  }
  uint32_t Key(KeyOrder order, const std::byte* value) const {
    return VisitBits(dtype(), [&](auto zero) -> uint32_t { return KeyOf(order, LoadLE<decltype(zero)>(value)); });
  }

 private:
  const WithTarget with_{std::get<0>(GetParam())};
};

TEST_P(ValueLimitsTest, TheLargestFiniteBitsAreThoseOfTheLargestFiniteValue) {
  const uint32_t bits = MaxFiniteBits(dtype());
  EXPECT_EQ(LoadAsF32(dtype(), &bits, 0), MaxFinite(dtype()));
}

TEST_P(ValueLimitsTest, LimitsAllButNan) {
  std::mt19937 random(9);
  for (int round = 0; round < 100; ++round) {
    const size_t count = 1 + random() % 200;
    const auto values = testing::MakeBits(count * width(), static_cast<uint32_t>(random()));
    // Bounds that are numbers.
    std::vector<std::byte> bounds(2 * width());
    StoreFromF32(dtype(), testing::Bell(random) * 100, bounds.data(), 0);
    StoreFromF32(dtype(), testing::Bell(random) * 100, bounds.data(), 1);
    std::vector<const std::byte*> order = {bounds.data(), bounds.data() + width()};
    std::ranges::sort(order, {}, [&](const std::byte* bound) { return Key(KeyOrder::kValue, bound); });
    const uint32_t lower = Key(KeyOrder::kValue, order[0]);
    const uint32_t upper = Key(KeyOrder::kValue, order[1]);
    auto got = values;
    LimitKeys(dtype(), got.data(), count, lower, upper, got.data());
    for (size_t i = 0; i < count; ++i) {
      const std::byte* want = &values[i * width()];
      const uint32_t key = Key(KeyOrder::kValue, want);
      if (!std::isnan(At(values, i)) && key < lower) want = order[0];
      if (!std::isnan(At(values, i)) && key > upper) want = order[1];
      EXPECT_TRUE(SameBits(got, i, want)) << At(values, i);
    }
  }
}

TEST_P(ValueLimitsTest, FindsTheLargestFiniteMagnitude) {
  std::mt19937 random(10);
  for (int round = 0; round < 100; ++round) {
    const size_t count = random() % 200;
    const auto values = testing::MakeBits(count * width(), static_cast<uint32_t>(random()));
    float want = 0;
    for (size_t i = 0; i < count; ++i) {
      if (std::isfinite(At(values, i))) want = std::max(want, std::abs(At(values, i)));
    }
    const uint32_t bits = LargestFinite(dtype(), values.data(), count);
    EXPECT_EQ(LoadAsF32(dtype(), &bits, 0), want);
  }
}

TEST_P(ValueLimitsTest, FindsTheLargestBitsAndSubnormalValues) {
  std::mt19937 random(12);
  for (int round = 0; round < 200; ++round) {
    const size_t count = 1 + random() % 200;
    auto values = testing::MakeValues(dtype(), count, testing::Distribution::kOutliers, static_cast<uint32_t>(round));
    const bool is_subnormal = round % 2 == 0;
    StoreFromF32(dtype(), is_subnormal ? -0x1p-127f : 0x1p-126f, values.data(), random() % count);
    uint32_t want = 0;
    for (size_t i = 0; i < count; ++i) {
      want = std::max(want, Key(KeyOrder::kMagnitude, values.data() + i * width()));
    }
    EXPECT_EQ(LargestBits(dtype(), values.data(), count), want);
    const bool holds = dtype() == DType::kBF16 || dtype() == DType::kF32;
    EXPECT_EQ(HasSubnormals(dtype(), values.data(), count), is_subnormal && holds);
    StoreFromF32(dtype(), std::numeric_limits<float>::quiet_NaN(), values.data(), random() % count);
    EXPECT_GT(LargestBits(dtype(), values.data(), count), MaxFiniteBits(dtype()));
  }
}

TEST_P(ValueLimitsTest, ClampsMagnitudesInfinitiesAndNan) {
  std::mt19937 random(11);
  for (int round = 0; round < 100; ++round) {
    const size_t count = 1 + random() % 200;
    auto values = testing::MakeBits(count * width(), static_cast<uint32_t>(random()));
    StoreFromF32(dtype(), -std::numeric_limits<float>::infinity(), values.data(), random() % count);
    const bool has_infinity = MaxFiniteBits(dtype()) < InfinityBits(dtype());
    const auto limit = static_cast<uint32_t>(random() % MaxFiniteBits(dtype()));
    const uint32_t of_infinity = has_infinity ? limit / 2 : limit;
    auto got = values;
    ClampMagnitudes(dtype(), got.data(), count, limit, of_infinity, got.data());
    const float most = LoadAsF32(dtype(), &limit, 0);
    const float at_infinity = LoadAsF32(dtype(), &of_infinity, 0);
    for (size_t i = 0; i < count; ++i) {
      const float x = At(values, i);
      float want = std::isnan(x) ? 0.0f : std::copysign(std::min(std::abs(x), most), x);
      if (std::isinf(x)) want = std::copysign(at_infinity, x);
      EXPECT_EQ(At(got, i), want);
      EXPECT_EQ(std::signbit(At(got, i)), std::signbit(want));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, ValueLimitsTest,
                         ::testing::Combine(::testing::ValuesIn(UsableTargets()), ::testing::ValuesIn(kValueDTypes)),
                         TargetAndDTypeName);

}  // namespace
}  // namespace kvcompress::simd
