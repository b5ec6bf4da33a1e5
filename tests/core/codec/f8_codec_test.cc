#include <gmock/gmock.h>

#include <cmath>

#include "tests/core/codec/chain_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT
using Bytes = std::vector<std::byte>;

constexpr DType kF8DTypes[] = {DType::kF8E4M3, DType::kF8E5M2};
constexpr std::string_view kSpecs[] = {"int2",
                                       "int4(group=32)",
                                       "int8",
                                       "quant(bits=4,per=channel,symmetric=false)",
                                       "quant(bits=3,per=group,outliers=0.02)",
                                       "blocknorm(block=32,topk=0.1,bits=6)",
                                       "rotated(bits=3)",
                                       "int4|rans"};

Bytes Decoded(const CodecChain& chain, const TensorDesc& tensor, ByteSpan payload) {
  Bytes values(*NumWords(tensor.dtype, tensor.shape) * DTypeSize(tensor.dtype));
  EXPECT_THAT(chain.DecodeBlock(tensor, payload, values), IsOk());
  return values;
}

// docs/format.md, "Tensor codecs".
TEST(F8CodecTest, PayloadsAreThoseOfF16AndValuesAreRounded) {
  for (const DType dtype : kF8DTypes) {
    const TensorDesc tensor = MakeTensor("t", dtype, {40, 50});
    const TensorDesc wide = MakeTensor("t", DType::kF16, {40, 50});
    for (const Distribution distribution : kAllDistributions) {
      const Bytes values = MakeValues(dtype, 2000, distribution);
      Bytes wide_values(4000);
      WidenF8(dtype, values.data(), 2000, wide_values.data());
      for (const std::string_view spec : kSpecs) {
        SCOPED_TRACE(spec);
        const CodecChain chain = MakeChain(spec, tensor);
        const CodecChain wide_chain = MakeChain(spec, wide);
        ErrorSums sums;
        const auto payload = EncodeOneBlock(chain, tensor, values, &sums);
        const auto wide_payload = EncodeOneBlock(wide_chain, wide, wide_values, nullptr);
        ASSERT_THAT(payload, IsOk());
        ASSERT_EQ(*payload, *wide_payload);
        const Bytes decoded = Decoded(chain, tensor, *payload);
        const Bytes wide_decoded = Decoded(wide_chain, wide, *payload);
        double largest = 0;
        for (size_t i = 0; i < 2000; ++i) {
          const float x = LoadAsF32(dtype, values.data(), i);
          const float y = LoadAsF32(dtype, decoded.data(), i);
          const float unrounded = LoadAsF32(DType::kF16, wide_decoded.data(), i);
          EXPECT_EQ(y, RoundTo(dtype, unrounded));
          EXPECT_LE(std::fabs(x - y), 2 * std::fabs(x - unrounded));
          largest = std::max(largest, std::fabs(double{x} - double{y}));
        }
        EXPECT_EQ(sums.count, 2000u);
        EXPECT_EQ(sums.max_abs_error, largest);
      }
    }
  }
}

TEST(F8CodecTest, WhatIsNotFiniteIsNamed) {
  const TensorDesc tensor = MakeTensor("t", DType::kF8E4M3, {64});
  Bytes values(64);
  values[17] = std::byte{0xff};
  EXPECT_THAT(EncodeOneBlock(MakeChain("int4", tensor), tensor, values, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("\"t\": value 17 is NaN")));
}

// A frame may hold any bits: what they decode to beyond the type's range is its largest value, and NaN stays NaN.
TEST(F8CodecTest, ScalesThatNobodyWroteSaturate) {
  const TensorDesc tensor = MakeTensor("t", DType::kF8E4M3, {64});
  const CodecChain chain = MakeChain("int8", tensor);
  Bytes values(64, std::byte{0x38});  // 1
  auto payload = *EncodeOneBlock(chain, tensor, values, nullptr);
  const size_t scale = payload.size() - 64 - 2;
  StoreLE<uint16_t>(0x7bff, payload.data() + scale);
  EXPECT_EQ(Decoded(chain, tensor, payload), Bytes(64, std::byte{0x7e}));
  StoreLE<uint16_t>(0x7c00, payload.data() + scale);
  EXPECT_EQ(Decoded(chain, tensor, payload), Bytes(64, std::byte{0x7f}));
}

}  // namespace
}  // namespace kvcompress
