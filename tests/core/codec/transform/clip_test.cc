#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_format.h"
#include "tests/core/codec/chain_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

class ClipTest : public ::testing::TestWithParam<double> {};

// The smallest magnitude that at least `percentile` percent of all magnitudes do not exceed, over all blocks.
TEST_P(ClipTest, SaturatesAtThePercentileOfTheWholeTensor) {
  const double percentile = GetParam();
  const auto chain = MakeChain(absl::StrFormat("clip(percentile=%g)|raw", percentile));
  constexpr size_t kBlock = 256;
  constexpr size_t kCount = 1000;
  for (const DType dtype : kValueDTypes) {
    for (const Distribution distribution : kAllDistributions) {
      const TensorDesc tensor = MakeTensor("t", dtype, {kCount});
      const auto values = MakeValues(dtype, kCount, distribution);
      std::vector<float> magnitudes;
      for (size_t i = 0; i < kCount; ++i) magnitudes.push_back(std::fabs(LoadAsF32(dtype, values.data(), i)));
      std::sort(magnitudes.begin(), magnitudes.end());
      // In tenths of a percent of 1000 values, exactly.
      const auto rank = static_cast<size_t>(std::lround(percentile * 10));
      const float limit = magnitudes[std::max<size_t>(rank, 1) - 1];
      const auto state = chain.Analyze(tensor, MemorySource(ByteSpan(values)), kBlock);
      ASSERT_THAT(state, IsOk());
      for (size_t first = 0; first < kCount; first += kBlock) {
        const size_t n = std::min(kBlock, kCount - first);
        const size_t width = DTypeSize(dtype);
        const ByteSpan block = ByteSpan(values).subspan(first * width, n * width);
        std::vector<std::byte> payload(chain.MaxPayloadBytes(tensor, n));
        const auto size = chain.EncodeBlock({tensor, first, n, block}, *state, payload, nullptr);
        ASSERT_THAT(size, IsOk());
        std::vector<std::byte> decoded(n * width);
        ASSERT_THAT(chain.DecodeBlock(tensor, ByteSpan(payload).first(*size), decoded), IsOk());
        for (size_t i = 0; i < n; ++i) {
          const float x = LoadAsF32(dtype, block.data(), i);
          ASSERT_EQ(LoadAsF32(dtype, decoded.data(), i), std::copysign(std::fmin(std::fabs(x), limit), x))
              << DTypeName(dtype) << " value " << first + i;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Percentiles, ClipTest, ::testing::Values(0, 0.1, 33.3, 50, 99, 99.9, 100));

TEST(ClipTest, InfinitiesSaturateAndNanStays) {
  constexpr float kInfinite = std::numeric_limits<float>::infinity();
  for (const DType dtype : kValueDTypes) {
    const std::vector<float> in = {1, -kInfinite, std::nanf(""), 2, -3, kInfinite, 0.5f, 0.25f};
    std::vector<std::byte> values(in.size() * DTypeSize(dtype));
    for (size_t i = 0; i < in.size(); ++i) StoreFromF32(dtype, in[i], values.data(), i);
    const auto chain = MakeChain("clip(percentile=62.5)|raw");
    const TensorDesc tensor = MakeTensor("t", dtype, {in.size()});
    const auto payload = EncodeOneBlock(chain, tensor, values, nullptr);
    ASSERT_THAT(payload, IsOk());
    ASSERT_THAT(chain.DecodeBlock(tensor, *payload, values), IsOk());
    std::vector<float> out;
    for (size_t i = 0; i < in.size(); ++i) out.push_back(LoadAsF32(dtype, values.data(), i));
    EXPECT_THAT(out, ::testing::ElementsAre(1, -3, ::testing::IsNan(), 2, -3, 3, 0.5f, 0.25f));
  }
}

}  // namespace
}  // namespace kvcompress
