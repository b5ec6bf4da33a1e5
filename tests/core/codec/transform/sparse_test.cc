#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "absl/strings/str_format.h"
#include "tests/core/codec/chain_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

// Which values the definition drops: the floor(ratio n) smallest magnitudes, the first of equal ones first.
std::vector<bool> Dropped(DType dtype, ByteSpan values, size_t count, double ratio) {
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::fabs(LoadAsF32(dtype, values.data(), a)) < std::fabs(LoadAsF32(dtype, values.data(), b));
  });
  std::vector<bool> dropped(count, false);
  const auto drop = static_cast<size_t>(std::floor(ratio * static_cast<double>(count)));
  for (size_t i = 0; i < drop; ++i) dropped[order[i]] = true;
  return dropped;
}

class SparseTest : public ::testing::TestWithParam<double> {};

TEST_P(SparseTest, DropsExactlyTheSmallestOfTheWholeTensor) {
  const double ratio = GetParam();
  const auto chain = MakeChain(absl::StrFormat("sparse(ratio=%g)|raw", ratio));
  constexpr size_t kBlock = 256;
  for (DType dtype : kValueDTypes) {
    for (Distribution distribution : kAllDistributions) {
      const size_t count = 1000;  // four blocks, the last short
      const TensorDesc tensor = MakeTensor("t", dtype, {count});
      const auto values = MakeValues(dtype, count, distribution);
      const std::vector<bool> dropped = Dropped(dtype, values, count, ratio);
      const auto state = chain.Analyze(tensor, MemorySource(ByteSpan(values)), kBlock);
      ASSERT_THAT(state, IsOk());
      for (size_t first = 0; first < count; first += kBlock) {
        const size_t n = std::min(kBlock, count - first);
        const size_t width = DTypeSize(dtype);
        const ByteSpan block = ByteSpan(values).subspan(first * width, n * width);
        std::vector<std::byte> payload(chain.MaxPayloadBytes(tensor, n));
        const auto size = chain.EncodeBlock({tensor, first, n, block}, *state, payload, nullptr);
        ASSERT_THAT(size, IsOk());
        std::vector<std::byte> decoded(n * width);
        ASSERT_THAT(chain.DecodeBlock(tensor, ByteSpan(payload).first(*size), decoded), IsOk());
        for (size_t i = 0; i < n; ++i) {
          const float expected = dropped[first + i] ? 0.0f : LoadAsF32(dtype, block.data(), i);
          ASSERT_EQ(LoadAsF32(dtype, decoded.data(), i), expected) << DTypeName(dtype) << " value " << first + i;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ratios, SparseTest, ::testing::Values(0.0, 0.001, 0.1, 0.5, 0.73, 0.999, 1.0));

// What a sparse before it dropped counts as +0, and of equal magnitudes the first go: so the bits tell which zeros
// went.
TEST(SparseSizeTest, BehindAnotherItDropsTheFirstZerosOfTheWholeTensor) {
  constexpr size_t kCount = 1000;
  constexpr size_t kBlock = 256;
  for (DType dtype : kValueDTypes) {
    const size_t width = DTypeSize(dtype);
    const TensorDesc tensor = MakeTensor("t", dtype, {kCount});
    for (const size_t step : {2u, 3u, 7u, 1001u}) {
      // -0, of each so many values one that is larger, and now and then +0.
      std::vector<std::byte> values(kCount * width);
      for (size_t i = 0; i < kCount; ++i) {
        const std::byte zero{static_cast<unsigned char>(i % 5 == 0 ? 0 : 0x80)};
        values[(i + 1) * width - 1] = i % step == step - 1 ? std::byte{0x3c} : zero;
      }
      std::vector<std::byte> expected = values;
      for (const double ratio : {0.5, 0.75, 0.8}) {
        const std::vector<bool> dropped = Dropped(dtype, expected, kCount, ratio);
        for (size_t i = 0; i < kCount; ++i) {
          if (dropped[i]) std::memset(expected.data() + i * width, 0, width);
        }
      }
      const auto chain = MakeChain("sparse(ratio=0.5)|sparse(ratio=0.75)|sparse(ratio=0.8)|raw");
      const auto state = chain.Analyze(tensor, MemorySource(ByteSpan(values)), kBlock);
      ASSERT_THAT(state, IsOk());
      for (size_t first = 0; first < kCount; first += kBlock) {
        const size_t n = std::min(kBlock, kCount - first);
        const ByteSpan block = ByteSpan(values).subspan(first * width, n * width);
        std::vector<std::byte> payload(chain.MaxPayloadBytes(tensor, n));
        const auto size = chain.EncodeBlock({tensor, first, n, block}, *state, payload, nullptr);
        ASSERT_THAT(size, IsOk());
        std::vector<std::byte> decoded(n * width);
        ASSERT_THAT(chain.DecodeBlock(tensor, ByteSpan(payload).first(*size), decoded), IsOk());
        EXPECT_TRUE(std::ranges::equal(decoded, ByteSpan(expected).subspan(first * width, n * width)))
            << DTypeName(dtype) << " step " << step << " block at " << first;
      }
    }
  }
}

TEST(SparseSizeTest, ShrinksWithTheRatioAndNeverGrows) {
  const TensorDesc tensor = MakeTensor("t", DType::kF16, {65536});
  const auto values = MakeValues(DType::kF16, 65536, Distribution::kGaussian);
  const auto size_at = [&](std::string_view spec) {
    return EncodeOneBlock(MakeChain(spec), tensor, values, nullptr)->size();
  };
  const size_t dense = size_at("int4");
  size_t before = dense + 4;  // the empty side stream's entry in the table
  for (const char* spec : {"sparse(ratio=0.1)|int4", "sparse(ratio=0.3)|int4", "sparse(ratio=0.5)|int4",
                           "sparse(ratio=0.8)|int4", "sparse(ratio=1)|int4"}) {
    EXPECT_LE(size_at(spec), before) << spec;
    before = size_at(spec);
  }
  // A bit for every value, and 4.25 bits for each of the half that is kept.
  EXPECT_NEAR(static_cast<double>(size_at("sparse(ratio=0.5)|int4")), 65536 * (1 + 4.25 / 2) / 8, 64);
}

TEST(SparseTest, RefusedValuesAreNamedByTheirPlaceInTheTensor) {
  auto values = MakeValues(DType::kF16, 500, Distribution::kGaussian);
  StoreFromF32(DType::kF16, std::nanf(""), values.data(), 499);
  EXPECT_THAT(EncodeOneBlock(MakeChain("sparse(ratio=0.5)|int4"), MakeTensor("t", DType::kF16, {500}), values, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("value 499 is NaN")));
}

TEST(SparseTest, MasksThatNoEncoderWroteAreRefused) {
  const auto chain = MakeChain("sparse(ratio=0.5)|raw");
  const auto values = MakeValues(DType::kF16, 100, Distribution::kGaussian);
  const TensorDesc tensor = MakeTensor("t", DType::kF16, {100});
  auto payload = *EncodeOneBlock(chain, tensor, values, nullptr);
  std::vector<std::byte> decoded(values.size());
  payload[8 + 12] ^= std::byte{0x80};  // the mask's last byte has four values and four bits that must be clear
  EXPECT_THAT(chain.DecodeBlock(tensor, payload, decoded),
              StatusIs(absl::StatusCode::kDataLoss, "sparse: mask has bits behind its end"));
}

}  // namespace
}  // namespace kvcompress
