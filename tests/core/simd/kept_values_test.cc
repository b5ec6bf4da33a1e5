#include "core/simd/kept_values.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <tuple>
#include <vector>

#include "core/simd/key_counts.h"
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

using Bytes = std::vector<std::byte>;

const std::byte* Data(const Guarded& guarded) { return reinterpret_cast<const std::byte*>(guarded.data()); }

class KeptValuesTest : public ::testing::TestWithParam<std::tuple<int64_t, DType, bool>> {
 protected:
  DType dtype() const { return std::get<1>(GetParam()); }
  size_t width() const { return DTypeSize(dtype()); }

  uint32_t KeyAt(const Bytes& values, size_t i) const {
    return VisitBits(dtype(), [&](auto zero) -> uint32_t {
      return KeyOf(KeyOrder::kMagnitude, LoadLE<decltype(zero)>(&values[i * width()]));
    });
  }

 private:
  const WithTarget with_{std::get<0>(GetParam())};
  const MayPermuteBytes permutes_{std::get<2>(GetParam())};
};

TEST_P(KeptValuesTest, MarksAndCountsMagnitudes) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    const size_t count = 1 + random() % 300;
    const Bytes values = testing::MakeBits(count * width(), static_cast<uint32_t>(random()));
    const uint32_t threshold = KeyAt(values, random() % count);
    const Guarded guarded(values.data(), values.size(), Guarded::Against::kPageAfter);
    Bytes got((count + 7) / 8, std::byte{0xa5}), want((count + 7) / 8);
    size_t kept = 0;
    size_t equal = 0;
    for (size_t i = 0; i < count; ++i) {
      equal += KeyAt(values, i) == threshold;
      if (KeyAt(values, i) < threshold) continue;
      want[i / 8] |= static_cast<std::byte>(1u << i % 8);
      ++kept;
    }
    EXPECT_EQ(MarkMagnitudes(dtype(), Data(guarded), count, threshold, got.data()), kept);
    EXPECT_EQ(got, want);
    EXPECT_EQ(CountKept(got.data(), got.size()), kept);
    EXPECT_EQ(CountMagnitude(dtype(), Data(guarded), count, threshold), equal);
    Bytes are_equal(want.size()), are_negative(want.size());
    for (size_t i = 0; i < count; ++i) {
      const auto bit = static_cast<std::byte>(1u << i % 8);
      if (KeyAt(values, i) == threshold) are_equal[i / 8] |= bit;
      if ((values[(i + 1) * width() - 1] & std::byte{0x80}) != std::byte{0}) are_negative[i / 8] |= bit;
    }
    MarkValues(MarkOf::kEqual, dtype(), Data(guarded), count, threshold, got.data());
    EXPECT_EQ(got, are_equal);
    MarkValues(MarkOf::kNegative, dtype(), Data(guarded), count, threshold, got.data());
    EXPECT_EQ(got, are_negative);
  }
}

// Of masks of every density, and of ones that keep all values at one end.
TEST_P(KeptValuesTest, PacksAndUnpacks) {
  std::mt19937 random(8);
  for (int round = 0; round < 400; ++round) {
    const size_t count = random() % 300;
    const size_t density = random() % 9;
    const size_t turn = random() % (count + 1);
    const bool is_turned = random() % 3 == 0;
    const Bytes values = testing::MakeBits(count * width(), static_cast<uint32_t>(random()));
    Bytes mask((count + 7) / 8), packed, zeroed(values.size());
    for (size_t i = 0; i < count; ++i) {
      if (is_turned ? (i < turn) != (density % 2 == 0) : random() % 8 >= density) continue;
      mask[i / 8] |= static_cast<std::byte>(1u << i % 8);
      const auto value = values.begin() + static_cast<ptrdiff_t>(i * width());
      packed.insert(packed.end(), value, value + static_cast<ptrdiff_t>(width()));
      std::copy_n(value, width(), zeroed.begin() + static_cast<ptrdiff_t>(i * width()));
    }
    const Guarded guarded(values.data(), values.size(), Guarded::Against::kPageAfter);
    const Guarded guarded_packed(packed.data(), packed.size(), Guarded::Against::kPageAfter);
    Guarded out(values.size(), Guarded::Against::kPageAfter);
    auto* const to = reinterpret_cast<std::byte*>(out.data());
    PackKept(width(), Data(guarded), count, mask.data(), to);
    EXPECT_TRUE(std::equal(packed.begin(), packed.end(), to));
    std::fill_n(to, values.size(), std::byte{0xa5});
    UnpackKept(width(), Data(guarded_packed), count, mask.data(), to);
    EXPECT_TRUE(std::equal(zeroed.begin(), zeroed.end(), to));
    std::fill_n(to, values.size(), std::byte{0xa5});
    ZeroUnkept(width(), Data(guarded), count, mask.data(), to);
    EXPECT_TRUE(std::equal(zeroed.begin(), zeroed.end(), to));
  }
}

INSTANTIATE_TEST_SUITE_P(All, KeptValuesTest,
                         ::testing::Combine(::testing::ValuesIn(UsableTargets()), ::testing::ValuesIn(kValueDTypes),
                                            ::testing::Bool()),
                         TargetDTypeAndPermutesName);

}  // namespace
}  // namespace kvcompress::simd
