#include <gmock/gmock.h>

#include <cstring>
#include <limits>

#include "core/base/half.h"
#include "tests/core/codec/chain_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr size_t kValues = 1000;

const char* const kRefusing[] = {"int4",      "int8|rans", "quant(bits=4,per=token)|zstd(level=1)",
                                 "blocknorm", "rotated",   "heads(0-9:int4,10-:quant(bits=4))"};

std::string WithFallback(std::string_view codec) { return ChainSpec::Parse(codec)->WithFallback()->text(); }

std::vector<std::byte> Values(DType dtype, float special) {
  std::vector<std::byte> values(kValues * DTypeSize(dtype));
  for (size_t i = 0; i < kValues; ++i) StoreFromF32(dtype, static_cast<float>(i % 37) / 8 - 2, values.data(), i);
  StoreFromF32(dtype, special, values.data(), 567);
  return values;
}

TEST(FallbackTest, ABlockThatTheCodecRefusesComesBackBitForBit) {
  for (const char* codec : kRefusing) {
    for (const DType dtype : kKernelDTypes) {
      const TensorDesc tensor = MakeTensorOfHeads(dtype, kValues);
      const CodecChain refuses = MakeChain(codec, tensor);
      const CodecChain chain = MakeChain(WithFallback(codec), tensor);
      EXPECT_TRUE(refuses.refuses_values() && !chain.refuses_values()) << codec;
      for (const float special : {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
        const std::vector<std::byte> values = Values(dtype, special);
        EXPECT_THAT(EncodeOneBlock(refuses, tensor, values, nullptr),
                    StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("tensor \"t\": value 567 is ")));
        ErrorSums sums;
        const auto payload = EncodeOneBlock(chain, tensor, values, &sums);
        ASSERT_THAT(payload, IsOk()) << codec;
        EXPECT_TRUE(chain.FellBack(*payload));
        std::vector<std::byte> decoded(values.size());
        ASSERT_THAT(chain.DecodeBlock(tensor, *payload, decoded), IsOk()) << codec;
        EXPECT_TRUE(decoded == values) << codec;
        EXPECT_EQ(sums.count, kValues - 1);  // of the finite ones
        EXPECT_EQ(sums.max_abs_error, 0);
      }
    }
  }
}

TEST(FallbackTest, ABlockThatTheCodecTakesHasItsStreamsAndAnEmptyOne) {
  for (const char* codec : kRefusing) {
    const TensorDesc tensor = MakeTensorOfHeads(DType::kF16, kValues);
    const std::vector<std::byte> values = Values(DType::kF16, 1);
    const CodecChain plain = MakeChain(codec, tensor);
    const CodecChain chain = MakeChain(WithFallback(codec), tensor);
    ErrorSums plain_sums;
    ErrorSums sums;
    const auto expected = EncodeOneBlock(plain, tensor, values, &plain_sums);
    const auto payload = EncodeOneBlock(chain, tensor, values, &sums);
    ASSERT_THAT(payload, IsOk());
    EXPECT_FALSE(chain.FellBack(*payload));
    const size_t entry = payload->size() - expected->size();
    EXPECT_TRUE(std::equal(expected->begin(), expected->end(), payload->begin() + static_cast<ptrdiff_t>(entry)));
    EXPECT_TRUE(std::all_of(payload->begin(), payload->begin() + static_cast<ptrdiff_t>(entry),
                            [](std::byte byte) { return byte == std::byte{0}; }));
    EXPECT_EQ(sums.sum_error_squares, plain_sums.sum_error_squares);
    EXPECT_EQ(chain.is_fast(), plain.is_fast());
    EXPECT_EQ(chain.takes_pieces(), plain.takes_pieces());
    EXPECT_FALSE(chain.encodes_in_place());
  }
}

TEST(FallbackTest, PiecesGiveTheBytesOfTheWhole) {
  const TensorDesc tensor = MakeTensorOfHeads(DType::kF16, kValues);
  const CodecChain chain = MakeChain("fallback|int4", tensor);
  for (const float special : {1.0f, kInfinity}) {
    const std::vector<std::byte> values = Values(DType::kF16, special);
    const auto whole = EncodeOneBlock(chain, tensor, values, nullptr);
    const ByteSpan pieces[] = {ByteSpan(values).first(701), ByteSpan(values).subspan(701)};
    std::vector<std::byte> payload(chain.MaxPayloadBytes(tensor, kValues));
    ErrorSums sums;
    const auto size = chain.EncodeBlock({tensor, 0, kValues, {}, pieces}, {}, payload, &sums);
    ASSERT_THAT(size, IsOk());
    payload.resize(*size);
    EXPECT_TRUE(payload == *whole);
    EXPECT_EQ(sums.count, special == 1 ? kValues : kValues - 1);
  }
}

TEST(FallbackTest, ValuesThatATransformHasDroppedStayDropped) {
  const TensorDesc tensor = MakeTensorOfHeads(DType::kF16, kValues);
  const CodecChain chain = MakeChain("sparse(ratio=0.5)|fallback|int4|rans", tensor);
  std::vector<std::byte> values = Values(DType::kF16, kInfinity);
  const auto payload = EncodeOneBlock(chain, tensor, values, nullptr);
  ASSERT_THAT(payload, IsOk());
  EXPECT_TRUE(chain.FellBack(*payload));
  std::vector<std::byte> decoded(values.size());
  ASSERT_THAT(chain.DecodeBlock(tensor, *payload, decoded), IsOk());
  size_t zeros = 0;
  for (size_t i = 0; i < kValues; ++i) {
    const bool kept = std::memcmp(&decoded[2 * i], &values[2 * i], 2) == 0;
    EXPECT_TRUE(kept || LoadAsF32(DType::kF16, decoded.data(), i) == 0) << i;
    if (LoadAsF32(DType::kF16, decoded.data(), i) == 0) ++zeros;
  }
  EXPECT_EQ(zeros, kValues / 2);
}

TEST(FallbackTest, ASideStreamOfAnotherSizeIsDamage) {
  const TensorDesc tensor = MakeTensorOfHeads(DType::kF16, kValues);
  const CodecChain chain = MakeChain("fallback|raw", tensor);
  std::vector<std::byte> payload(8 + kValues * 2 - 2);
  StoreLE(static_cast<uint32_t>(kValues * 2 - 2), payload.data());
  std::vector<std::byte> decoded(kValues * 2);
  EXPECT_THAT(chain.DecodeBlock(tensor, payload, decoded), StatusIs(absl::StatusCode::kDataLoss, ::testing::_));
}

TEST(FallbackTest, ItStandsRightInFrontOfTheTensorCodec) {
  EXPECT_THAT(ChainSpec::Parse("fallback|sparse|int4"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       ::testing::HasSubstr("fallback must stand right in front of the tensor codec")));
  EXPECT_THAT(ChainSpec::Parse("fallback|fallback|int4"), StatusIs(absl::StatusCode::kInvalidArgument, ::testing::_));
  EXPECT_THAT(ChainSpec::Parse("sparse|heads(0-:int4)"), StatusIs(absl::StatusCode::kInvalidArgument, ::testing::_));
  EXPECT_EQ(WithFallback("sparse|int4|rans"), "sparse(ratio=0.5)|fallback|int4(group=64)|rans");
  EXPECT_EQ(WithFallback("fallback|int4"), "fallback|int4(group=64)");
  EXPECT_THAT(ChainSpec::Parse("int4|rans|rans|rans|rans|rans|rans|rans")->WithFallback(),
              StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("more than 8 stages")));
}

}  // namespace
}  // namespace kvcompress
