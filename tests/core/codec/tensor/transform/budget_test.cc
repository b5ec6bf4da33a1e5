#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "core/base/half.h"
#include "core/codec/tensor/transform/block.h"
#include "core/codec/tensor/transform/rate.h"
#include "core/tensor_compressor.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

// What bits=B promises: frames that take no more, and little less.
namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

using Bytes = std::vector<std::byte>;

// Heads of 256 tokens and 64 channels, eight of which are a block, each larger than the one before it.
Bytes GrowingHeads(size_t heads, double octaves_a_head) {
  std::mt19937 random(9);
  Bytes values(heads * 256 * 64 * 2);
  for (size_t i = 0; i < values.size() / 2; ++i) {
    const double scale = std::exp2(octaves_a_head * static_cast<double>(i / (256 * 64)) + static_cast<double>(i % 5));
    StoreFromF32(DType::kF16, static_cast<float>(scale * 0.05) * Bell(random), values.data(), i);
  }
  return values;
}

// Bits of a value of the whole frame.
double FrameBits(const std::string& spec, const std::vector<uint64_t>& shape, const Bytes& values) {
  const auto compressor = TensorCompressor::Create(MakeTensor("layer_0_key", DType::kF16, shape), spec);
  EXPECT_THAT(compressor, IsOk());
  Bytes frame(compressor->max_frame_bytes());
  const auto size = compressor->Compress(values, frame);
  EXPECT_THAT(size, IsOk());
  return 16.0 * static_cast<double>(size.value_or(0)) / static_cast<double>(values.size());
}

TEST(TransformBudgetTest, NoTensorOfUpToSixteenBlocksTakesMore) {
  for (const size_t heads : {1, 2, 8, 24, 40}) {
    for (const double growth : {0.0, 0.15}) {
      const Bytes values = GrowingHeads(heads, growth);
      for (const double bits : {1.0, 2.0, 3.0, 4.25, 8.0}) {
        for (const char* trellis : {"true", "false"}) {
          SCOPED_TRACE(::testing::Message() << heads << " heads, " << growth << ", " << bits << " " << trellis);
          const double own =
              FrameBits(absl::StrFormat("transform(bits=%g,trellis=%s)", bits, trellis), {1, heads, 256, 64}, values);
          EXPECT_LE(own, bits);
          EXPECT_GE(own, bits * 0.98 - 0.02);
        }
      }
    }
  }
}

TEST(TransformBudgetTest, LargerOnesTakeAboutThat) {
  const Bytes values = GrowingHeads(8 * 40, 0.01);
  const double own = FrameBits("transform(bits=3)", {1, 8 * 40, 256, 64}, values);
  EXPECT_LE(own, 3);
  EXPECT_GE(own, 2.9);
}

// A step with which points would not reach the largest value is raised: the budget holds for what it becomes.
TEST(TransformBudgetTest, ItHoldsWhereALargeValueBoundsTheStep) {
  std::mt19937 random(3);
  Bytes values(8 * 256 * 64 * 2);
  for (size_t i = 0; i < values.size() / 2; ++i) {
    StoreFromF32(DType::kF16, i % 5000 == 0 ? 65000 : 100 * Bell(random), values.data(), i);
  }
  for (const double bits : {4.0, 8.0, 10.0, 11.0, 12.0, 13.0}) {
    const double own = FrameBits(absl::StrFormat("transform(bits=%g)", bits), {1, 8, 256, 64}, values);
    EXPECT_LE(own, bits);
    EXPECT_GE(own, bits - 1);
  }
}

// Of what a fallback takes the rest knows nothing.
TEST(TransformBudgetTest, BlocksThatAreRefusedLeaveTheOthersTheirStep) {
  Bytes values = GrowingHeads(24, 0);
  const double before = FrameBits("fallback|transform(bits=3)", {1, 24, 256, 64}, values);
  StoreFromF32(DType::kF16, std::numeric_limits<float>::quiet_NaN(), values.data(), 5);
  const double after = FrameBits("fallback|transform(bits=3)", {1, 24, 256, 64}, values);
  EXPECT_NEAR(after, (16 + 2 * before) / 3, 0.03);
}

TEST(TransformBudgetTest, ClassesTellTheRate) {
  const Bytes values = GrowingHeads(4, 0.1);
  for (const bool trellis : {false, true}) {
    const TransformFormat format{.trellis = trellis};
    const TransformInput input{DType::kF16, {64, 256, 0, 64}, values.size() / 2, values.data()};
    ClassCounts counts;
    ASSERT_TRUE(CountClasses(format, false, 0.01f, input, counts));
    EXPECT_EQ(counts.channels, 4 * 64);
    for (const int octaves : {-1, 0, 2, 4}) {
      Bytes side(MaxSideBytes(input.count, 2)), words(MaxWordBytes(input.count, 2));
      const auto sizes = EncodeTransform(format, false, std::ldexp(0.01f, octaves), input, side.data(), words.data());
      ASSERT_TRUE(sizes.has_value());
      EXPECT_NEAR(8 * static_cast<double>(sizes->words) / counts.Bits(trellis, octaves), 1, octaves < 4 ? 0.02 : 0.05)
          << octaves;
    }
  }
}

}  // namespace
}  // namespace kvcompress
