#include "core/simd/key_counts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <tuple>
#include <vector>

#include "tests/core/simd/guarded.h"
#include "tests/core/simd/with_target.h"
#include "tests/testing/values.h"

namespace kvcompress::simd {
namespace {

using ::kvcompress::testing::Guarded;
using ::kvcompress::testing::MayPermuteBytes;
using ::kvcompress::testing::TargetDTypeAndPermutesName;
using ::kvcompress::testing::UsableTargets;
using ::kvcompress::testing::WithTarget;

std::vector<uint32_t> KeysOf(KeyOrder order, DType dtype, const std::vector<std::byte>& values) {
  std::vector<uint32_t> keys;
  VisitBits(dtype, [&](auto zero) {
    using Bits = decltype(zero);
    for (size_t at = 0; at < values.size(); at += sizeof(Bits)) keys.push_back(KeyOf(order, LoadLE<Bits>(&values[at])));
  });
  return keys;
}

TEST(KeyOfTest, OrdersLikeTheValues) {
  for (const DType dtype : kValueDTypes) {
    std::vector<std::byte> values(2 * DTypeSize(dtype));
    for (const auto& [a, b] : {std::pair{-3.0f, -2.0f}, {-2.0f, -0.0f}, {-0.0f, 0.0f}, {0.0f, 0.5f}, {0.5f, 400.0f}}) {
      StoreFromF32(dtype, a, values.data(), 0);
      StoreFromF32(dtype, b, values.data(), 1);
      const auto in_order = KeysOf(KeyOrder::kValue, dtype, values);
      EXPECT_LT(in_order[0], in_order[1]) << a << ' ' << b;
      const auto magnitudes = KeysOf(KeyOrder::kMagnitude, dtype, values);
      EXPECT_EQ(magnitudes[0] < magnitudes[1], std::abs(a) < std::abs(b)) << a << ' ' << b;
    }
  }
}

class KeyCountsTest : public ::testing::TestWithParam<std::tuple<int64_t, DType, bool>> {
 protected:
  DType dtype() const { return std::get<1>(GetParam()); }

  // Any bits, and of some of them many.
  std::vector<std::byte> Values(size_t count, std::mt19937& random) const {
    const size_t width = DTypeSize(dtype());
    auto values = testing::MakeBits(count * width, static_cast<uint32_t>(random()));
    for (size_t i = 0; i < count; ++i) {
      if (random() % 2 == 0) std::copy_n(values.begin(), width, values.begin() + static_cast<ptrdiff_t>(i * width));
    }
    return values;
  }

 private:
  const WithTarget with_{std::get<0>(GetParam())};
  const MayPermuteBytes permutes_{std::get<2>(GetParam())};
};

TEST_P(KeyCountsTest, CountsAboutAnyInterval) {
  std::mt19937 random(5);
  for (int round = 0; round < 200; ++round) {
    const size_t count = random() % (round % 10 == 0 ? 3000 : 300);  // some with several batches
    const auto values = Values(count, random);
    const Guarded guarded(values.data(), values.size(), Guarded::Against::kPageAfter);
    const KeyOrder order = random() % 2 == 0 ? KeyOrder::kMagnitude : KeyOrder::kValue;
    const auto keys = KeysOf(order, dtype(), values);
    const auto some_key = [&] { return keys.empty() ? 0 : keys[random() % keys.size()]; };
    const auto [lower, upper] = std::minmax({some_key(), some_key()});
    const int shift = DTypeSize(dtype()) == 4 ? 16 + static_cast<int>(random() % 8) : static_cast<int>(random() % 8);
    KeyCounts got(lower, upper, shift);
    CountKeys(order, dtype(), reinterpret_cast<const std::byte*>(guarded.data()), count, got);
    std::vector<uint64_t> between(got.between.size());
    for (const uint32_t key : keys) {
      if (lower < key && key < upper) ++between[(key - lower) >> shift];
    }
    EXPECT_EQ(got.below, std::ranges::count_if(keys, [end = lower](uint32_t key) { return key < end; }));
    EXPECT_EQ(got.at_lower, std::ranges::count(keys, lower));
    EXPECT_EQ(got.at_upper, lower < upper ? std::ranges::count(keys, upper) : 0);
    EXPECT_EQ(got.between, between);
  }
}

INSTANTIATE_TEST_SUITE_P(All, KeyCountsTest,
                         ::testing::Combine(::testing::ValuesIn(UsableTargets()), ::testing::ValuesIn(kValueDTypes),
                                            ::testing::Bool()),
                         TargetDTypeAndPermutesName);

}  // namespace
}  // namespace kvcompress::simd
