#include <gmock/gmock.h>

#include <limits>

#include "absl/strings/str_format.h"
#include "core/base/half.h"
#include "tests/core/codec/chain_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

TEST(CastTest, F32ValuesBecomeThoseOfTheTypeAndNothingElse) {
  const TensorDesc tensor = MakeTensor("t", DType::kF32, {50000});
  const auto in = MakeValues(DType::kF32, 50000, Distribution::kGaussian);
  for (const auto& [word, to] : {std::pair("f16", DType::kF16), std::pair("bf16", DType::kBF16)}) {
    const CodecChain chain = MakeChain(absl::StrFormat("cast(to=%s)|planes|rans", word), tensor);
    EXPECT_FALSE(chain.lossless());
    ErrorSums sums;
    const auto payload = EncodeOneBlock(chain, tensor, in, &sums);
    ASSERT_THAT(payload, IsOk());
    std::vector<std::byte> out(in.size());
    ASSERT_THAT(chain.DecodeBlock(tensor, *payload, out), IsOk());
    double squares = 0;
    for (size_t i = 0; i < 50000; ++i) {
      const float x = LoadAsF32(DType::kF32, in.data(), i);
      const float y = LoadAsF32(DType::kF32, out.data(), i);
      ASSERT_EQ(y, RoundTo(to, x));
      squares += (static_cast<double>(x) - y) * (static_cast<double>(x) - y);
    }
    // Before a lossless codec, what is measured is the cast's own error.
    EXPECT_NEAR(sums.sum_error_squares, squares, 1e-6 * squares);
    // Planes of zeros are free.
    const auto whole = EncodeOneBlock(MakeChain("planes|rans", tensor), tensor, in, nullptr);
    ASSERT_THAT(whole, IsOk());
    EXPECT_LT(payload->size() * 3, whole->size() * 2);
  }
}

TEST(CastTest, WhatIsTooLargeIsRefusedByName) {
  const float values[] = {1, 70000, 1};
  const TensorDesc tensor = MakeTensor("layer_0_key", DType::kF32, {3});
  EXPECT_THAT(
      EncodeOneBlock(MakeChain("cast|raw", tensor), tensor, std::as_bytes(std::span(values)), nullptr),
      StatusIs(absl::StatusCode::kInvalidArgument,
               "tensor \"layer_0_key\": 70000 is too large for F16 (use cast(to=bf16), or put clamp in front)"));
  EXPECT_THAT(EncodeOneBlock(MakeChain("cast(to=bf16)|raw", tensor), tensor, std::as_bytes(std::span(values)), nullptr),
              IsOk());
  EXPECT_THAT(EncodeOneBlock(MakeChain("clamp|cast|raw", tensor), tensor, std::as_bytes(std::span(values)), nullptr),
              IsOk());
}

TEST(CastTest, OtherTypesNanAndInfinitiesStayAsTheyAre) {
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    const TensorDesc tensor = MakeTensor("t", dtype, {1000});
    const std::vector<std::byte> bits = MakeBits(1000 * DTypeSize(dtype));
    const CodecChain chain = MakeChain("cast(to=bf16)|raw", tensor);
    EXPECT_TRUE(chain.lossless());
    const auto payload = EncodeOneBlock(chain, tensor, bits, nullptr);
    ASSERT_THAT(payload, IsOk());
    std::vector<std::byte> out(bits.size());
    ASSERT_THAT(chain.DecodeBlock(tensor, *payload, out), IsOk());
    EXPECT_EQ(out, bits);
  }
  const uint32_t in[] = {0x7f800001, 0xff800000, 0x7f800000, 0xffc00123};
  const TensorDesc tensor = MakeTensor("t", DType::kF32, {4});
  const CodecChain chain = MakeChain("cast|raw", tensor);
  const auto payload = EncodeOneBlock(chain, tensor, std::as_bytes(std::span(in)), nullptr);
  ASSERT_THAT(payload, IsOk());
  uint32_t out[4];
  ASSERT_THAT(chain.DecodeBlock(tensor, *payload, std::as_writable_bytes(std::span(out))), IsOk());
  EXPECT_THAT(out, ::testing::ElementsAreArray(in));
}

}  // namespace
}  // namespace kvcompress
