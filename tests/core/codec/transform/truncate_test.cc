#include <gmock/gmock.h>

#include <bit>
#include <cmath>
#include <limits>

#include "absl/strings/str_format.h"
#include "core/base/half.h"
#include "tests/core/codec/chain_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

constexpr DType kTruncateDTypes[] = {DType::kF16, DType::kBF16, DType::kF32};

// Clears all but the upper bits of a mantissa, by arithmetic.
float Truncated(float x, int mantissa, DType dtype) {
  if (!std::isfinite(x) || x == 0) return x;
  int exponent = 0;
  std::frexp(x, &exponent);
  // Of a subnormal number the mantissa's bits begin at the smallest exponent.
  const int least = dtype == DType::kF16 ? -13 : -125;
  const float unit = std::ldexp(1.0f, std::max(exponent, least) - 1 - mantissa);
  return std::trunc(x / unit) * unit;
}

TEST(TruncateTest, KeepsTheUpperBitsOfEachMantissa) {
  for (const DType dtype : kTruncateDTypes) {
    const TensorDesc tensor = MakeTensor("t", dtype, {4000});
    const std::vector<std::byte> in = MakeBits(4000 * DTypeSize(dtype));
    for (const int mantissa : {0, 1, 6, 10, 23}) {
      const CodecChain chain = MakeChain(absl::StrFormat("truncate(mantissa=%d)|raw", mantissa), tensor);
      const auto payload = EncodeOneBlock(chain, tensor, in, nullptr);
      ASSERT_THAT(payload, IsOk());
      std::vector<std::byte> out(in.size());
      ASSERT_THAT(chain.DecodeBlock(tensor, *payload, out), IsOk());
      const bool all = mantissa >= static_cast<int>(MantissaBits(dtype));
      EXPECT_EQ(chain.lossless(), all);
      if (all) {
        EXPECT_EQ(out, in);
      }
      for (size_t i = 0; i < 4000; ++i) {
        const float x = LoadAsF32(dtype, in.data(), i);
        const float y = LoadAsF32(dtype, out.data(), i);
        if (std::isnan(x)) {
          ASSERT_TRUE(std::isnan(y));
        } else if (!all) {
          ASSERT_EQ(y, Truncated(x, mantissa, dtype)) << DTypeName(dtype) << " " << x << " to " << mantissa;
        }
      }
    }
  }
}

TEST(TruncateTest, ANanWhosePayloadIsDroppedStaysNan) {
  const TensorDesc tensor = MakeTensor("t", DType::kF32, {2});
  const uint32_t in[] = {0x7f800001, 0xff800001};
  const CodecChain chain = MakeChain("truncate(mantissa=0)|raw", tensor);
  const auto payload = EncodeOneBlock(chain, tensor, std::as_bytes(std::span(in)), nullptr);
  ASSERT_THAT(payload, IsOk());
  uint32_t out[2];
  ASSERT_THAT(chain.DecodeBlock(tensor, *payload, std::as_writable_bytes(std::span(out))), IsOk());
  EXPECT_THAT(out, ::testing::ElementsAreArray(in));
}

// What the experiment's default gains, and costs: six of ten mantissa bits.
TEST(TruncateTest, ByteCodecsBehindItHaveLessToKeep) {
  const TensorDesc tensor = MakeTensor("t", DType::kF16, {65536});
  const auto values = MakeValues(DType::kF16, 65536, Distribution::kGaussian);
  const auto size = [&](std::string_view spec) {
    return EncodeOneBlock(MakeChain(spec, tensor), tensor, values, nullptr)->size();
  };
  EXPECT_LT(static_cast<double>(size("truncate|planes|rans")), 0.75 * static_cast<double>(size("planes|rans")));
}

}  // namespace
}  // namespace kvcompress
