#include "core/codec/magnitude.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>
#include <vector>

#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using ::kvcompress::testing::Distribution;
using ::kvcompress::testing::IsOk;
using simd::KeyOrder;

// What a sort says of the value at `rank`.
void ExpectSelected(DType dtype, const std::vector<std::byte>& values, size_t block_elements, KeyOrder order,
                    uint64_t rank) {
  std::vector<uint32_t> keys;
  VisitBits(dtype, [&](auto zero) {
    using Bits = decltype(zero);
    for (size_t at = 0; at < values.size(); at += sizeof(Bits)) {
      keys.push_back(simd::KeyOf(order, LoadLE<Bits>(&values[at])));
    }
  });
  std::ranges::sort(keys);
  const uint32_t largest = VisitBits(dtype, [&](auto zero) -> uint32_t { return simd::MaxKey<decltype(zero)>(order); });
  const uint32_t want = rank < keys.size() ? keys[rank] : largest;
  const auto before = static_cast<uint64_t>(std::ranges::lower_bound(keys, want) - keys.begin());
  uint64_t place = rank;
  uint32_t key = 0;
  ASSERT_THAT(SelectKey(MemorySource(ByteSpan(values)), dtype, block_elements, order, place, key), IsOk());
  EXPECT_EQ(key, want) << DTypeName(dtype) << " rank " << rank << " of " << keys.size();
  EXPECT_EQ(place, rank - before);
}

void ExpectSelectedAnywhere(DType dtype, const std::vector<std::byte>& values, size_t block_elements) {
  const uint64_t count = values.size() / DTypeSize(dtype);
  for (const KeyOrder order : {KeyOrder::kMagnitude, KeyOrder::kValue}) {
    for (const uint64_t rank :
         {uint64_t{0}, count / 1000, count / 3, count / 2, count - count / 50, count - 1, count}) {
      if (rank <= count) ExpectSelected(dtype, values, block_elements, order, rank);
    }
  }
}

TEST(SelectKeyTest, IsWhatASortSays) {
  for (const DType dtype : kValueDTypes) {
    for (const Distribution distribution : testing::kAllDistributions) {
      for (const size_t count : {1, 2, 63, 1000, 50'000}) {
        ExpectSelectedAnywhere(dtype, testing::MakeValues(dtype, count, distribution), 4096);
      }
    }
    ExpectSelectedAnywhere(dtype, testing::MakeBits(50'000 * DTypeSize(dtype)), 1 << 20);
    ExpectSelectedAnywhere(dtype, {}, 4096);
  }
}

// Values that a sample tells little of: few that differ from all others, in one place, or all in order.
TEST(SelectKeyTest, HoldsWhateverTheSampleMissed) {
  constexpr size_t kCount = 60'000;
  const std::vector<std::function<float(size_t)>> values_at = {
      [](size_t i) { return i < kCount / 1000 ? -1.5f : 2.0f; },
      [](size_t i) { return i == kCount - 1 ? 7.0f : 0.0f; },
      [](size_t i) { return static_cast<float>(i) * 0x1p-20f - 0.02f; },
      [](size_t i) { return i < kCount / 2 ? static_cast<float>(i % 7) : 1e4f + static_cast<float>(i); },
      [](size_t i) { return i % 2 == 0 ? 0.0f : -0.0f; },
  };
  for (const DType dtype : kValueDTypes) {
    for (const auto& value_at : values_at) {
      std::vector<std::byte> values(kCount * DTypeSize(dtype));
      for (size_t i = 0; i < kCount; ++i) StoreFromF32(dtype, value_at(i), values.data(), i);
      ExpectSelectedAnywhere(dtype, values, 1 << 14);
      for (const uint64_t rank : {kCount / 1000 - 1, kCount / 1000, kCount / 2 - 1, kCount - 2}) {
        ExpectSelected(dtype, values, 1 << 14, KeyOrder::kValue, rank);
      }
    }
  }
}

}  // namespace
}  // namespace kvcompress
