#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "core/base/half.h"
#include "core/tensor_compressor.h"
#include "tests/core/simd/with_target.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

// What snr=DB promises.
namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

using Bytes = std::vector<std::byte>;

// Channels with a constant that is larger than what changes from token to token.
Bytes KeysWithConstants(size_t count, size_t channels, uint32_t seed) {
  std::mt19937 random(seed);
  Bytes values(2 * count);
  for (size_t i = 0; i < count; ++i) {
    StoreFromF32(DType::kF16, static_cast<float>(i % channels % 5) + 0.25f * Bell(random), values.data(), i);
  }
  return values;
}

Bytes FrameOf(const TensorDesc& tensor, const std::string& spec, const Bytes& values, ErrorSums& sums) {
  const auto compressor = TensorCompressor::Create(tensor, spec);
  EXPECT_THAT(compressor, IsOk());
  Bytes frame(compressor->max_frame_bytes());
  const auto size = compressor->Compress(values, frame, &sums);
  EXPECT_THAT(size, IsOk());
  frame.resize(size.value_or(0));
  return frame;
}

TEST(TransformSearchTest, TheTokenSnrIsReachedWithFewChannelsToo) {
  for (const uint64_t channels : {2, 7, 15, 16, 33}) {
    const TensorDesc tensor = MakeTensor("layer_0_key", DType::kF16, {2, 3, 100, channels});
    const Bytes values = KeysWithConstants(600 * channels, channels, 1);
    for (const double snr : {10.0, 30.0}) {
      ErrorSums sums;
      FrameOf(tensor, absl::StrFormat("transform(snr=%g)", snr), values, sums);
      EXPECT_GE(10 * std::log10(sums.token_deviations / sums.token_error_deviations), snr) << channels;
      EXPECT_GE(10 * std::log10(sums.sum_deviations / sums.sum_error_squares), snr) << channels;
    }
  }
}

// Four blocks a head, of which few are looked at.
TEST(TransformSearchTest, BlocksThatAreLookedAtAreOfAllParts) {
  constexpr uint64_t kHeadValues = 4096 * 128;
  const TensorDesc tensor = MakeTensor("layer_0_key", DType::kF16, {1, 8, 4096, 128});
  std::mt19937 random(1);
  for (const double octaves : {-4.0, 4.0}) {
    Bytes values(16 * kHeadValues);
    for (size_t i = 0; i < 8 * kHeadValues; ++i) {
      const double loudness = std::exp2(octaves * static_cast<double>(i % kHeadValues / 128) / 4096);
      StoreFromF32(DType::kF16, static_cast<float>(loudness) * Bell(random), values.data(), i);
    }
    ErrorSums sums;
    FrameOf(tensor, "transform(snr=20)", values, sums);
    EXPECT_NEAR(10 * std::log10(sums.sum_deviations / sums.sum_error_squares), 20, 2.5);
    const double bytes = static_cast<double>(FrameOf(tensor, "transform(bits=3)", values, sums).size());
    EXPECT_NEAR(bytes / kHeadValues, 2.95, 0.07);
  }
}

// Steps have a range, and are no smaller than what reaches a block's largest value.
TEST(TransformSearchTest, ValuesOfWhichNoStepReachesItAreStored) {
  const TensorDesc tensor = MakeTensor("layer_0_key", DType::kF32, {1, 2, 64, 64});
  Bytes values = MakeValues(DType::kF32, 2 * 64 * 64, Distribution::kGaussian);
  ErrorSums sums;
  FrameOf(tensor, "transform(snr=150)", values, sums);
  EXPECT_EQ(sums.sum_error_squares, 0);
  for (size_t i = 0; i < values.size() / 4; ++i) {
    StoreFromF32(DType::kF32, LoadAsF32(DType::kF32, values.data(), i) * 0x1p-110f, values.data(), i);
  }
  sums = {};
  FrameOf(tensor, "transform(snr=20)", values, sums);
  EXPECT_EQ(sums.sum_error_squares, 0);
}

// Sums of errors differ among instruction sets in their last bits.
TEST(TransformSearchTest, FramesAreTheSameOnEveryCpu) {
  const TensorDesc tensor = MakeTensor("layer_0_key", DType::kF32, {1, 2, 17, 64});
  for (uint32_t seed = 0; seed < 200; ++seed) {
    const Bytes values = MakeValues(DType::kF32, 2 * 17 * 64, Distribution::kGaussian, seed);
    ErrorSums sums;
    const Bytes expected = FrameOf(tensor, "transform(snr=10,trellis=false)", values, sums);
    for (const int64_t target : UsableTargets()) {
      const WithTarget with(target);
      EXPECT_EQ(FrameOf(tensor, "transform(snr=10,trellis=false)", values, sums), expected) << hwy::TargetName(target);
    }
  }
}

}  // namespace
}  // namespace kvcompress
