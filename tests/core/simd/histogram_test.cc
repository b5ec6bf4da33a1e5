#include "core/simd/histogram.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <numeric>

#include "tests/core/simd/guarded.h"
#include "tests/core/simd/with_target.h"
#include "tests/testing/values.h"

namespace kvcompress::simd {
namespace {

using ::kvcompress::testing::Guarded;
using ::kvcompress::testing::UsableTargets;
using ::kvcompress::testing::WithTarget;

class HistogramTest : public ::testing::TestWithParam<int64_t> {
 protected:
  const WithTarget with_{GetParam()};
};

// Whatever the symbols that are asked for, and at the edge of pages that cannot be touched.
TEST_P(HistogramTest, CountsEveryByte) {
  std::array<uint8_t, kFewSymbols> symbols;
  std::iota(symbols.begin(), symbols.end(), uint8_t{250});  // wraps: 250 to 255 and 0 to 9
  for (const size_t size :
       {0, 1, 15, 16, 17, 63, 64, 65, 1000, 255 * 16, 255 * 64, 255 * 64 + 1, 100'003, 2 * 65535, 300'001}) {
    for (const unsigned different : {1u, 8u, 20u, 256u}) {
      auto raw = testing::MakeBits(size, different);
      std::array<uint32_t, 256> want = {};
      for (std::byte& byte : raw) {
        byte = static_cast<std::byte>(252 + std::to_integer<unsigned>(byte) % different);
        ++want[std::to_integer<size_t>(byte)];
      }
      for (const auto against : {Guarded::Against::kPageBefore, Guarded::Against::kPageAfter}) {
        const Guarded bytes(raw.data(), raw.size(), against);
        std::array<uint32_t, 256> counts = {};
        counts[7] = 3;  // what is there already stays
        std::array<uint32_t, 256> by_pairs = counts;
        CountFew(symbols, bytes.data(), size, counts);
        CountPairs(bytes.data(), size, by_pairs);
        EXPECT_EQ(counts, by_pairs) << size << " bytes, " << different << " different";
        counts[7] -= 3;
        EXPECT_EQ(counts, want) << size << " bytes, " << different << " different";
      }
    }
  }
}

// Words that are those before them, at the front or later on.
TEST_P(HistogramTest, CountsPairsInRuns) {
  for (const size_t run : {1, 8, 20, 100, 5000}) {
    for (const size_t noise : {0, 1000}) {
      auto raw = testing::MakeBits(200'003, 256);
      for (size_t i = noise; i < raw.size(); ++i) raw[i] = static_cast<std::byte>(i / run);
      std::array<uint32_t, 256> want = {};
      for (const std::byte byte : raw) ++want[std::to_integer<size_t>(byte)];
      std::array<uint32_t, 256> counts = {};
      CountPairs(reinterpret_cast<const uint8_t*>(raw.data()), raw.size(), counts);
      EXPECT_EQ(counts, want) << run << " " << noise;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, HistogramTest, ::testing::ValuesIn(UsableTargets()),
                         [](const auto& test) { return std::string(hwy::TargetName(test.param)); });

}  // namespace
}  // namespace kvcompress::simd
