#include <gmock/gmock.h>

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

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<float> Clamped(std::string_view spec, DType dtype, const std::vector<float>& in) {
  std::vector<std::byte> values(in.size() * DTypeSize(dtype));
  for (size_t i = 0; i < in.size(); ++i) StoreFromF32(dtype, in[i], values.data(), i);
  const TensorDesc tensor = MakeTensor("t", dtype, {in.size()});
  const auto chain = MakeChain(spec, tensor);
  const auto payload = EncodeOneBlock(chain, tensor, values, nullptr);
  EXPECT_THAT(payload, IsOk());
  EXPECT_THAT(chain.DecodeBlock(tensor, *payload, values), IsOk());
  std::vector<float> out;
  for (size_t i = 0; i < in.size(); ++i) out.push_back(LoadAsF32(dtype, values.data(), i));
  return out;
}

TEST(ClampTest, InfinitiesBecomeTheLargestFiniteMagnitudeAndNanBecomesZero) {
  EXPECT_THAT(Clamped("clamp|raw", DType::kF16, {1, -kInf, std::nanf(""), kInf, -3.5f}),
              ::testing::ElementsAre(1, -3.5f, 0, 3.5f, -3.5f));
}

TEST(ClampTest, LargeValuesSaturateAtTheLimit) {
  EXPECT_THAT(Clamped("clamp(limit=2)|raw", DType::kF32, {1, 5, -1e30f, kInf}), ::testing::ElementsAre(1, 2, -2, 2));
  EXPECT_THAT(Clamped("clamp|raw", DType::kBF16, {1e30f}), ::testing::ElementsAre(65280));  // 65536 is nearer
}

TEST(ClampTest, NothingExceedsALimitThatTheDtypeCannotHold) {
  for (const double limit : {0.1, 1.0 / 3, 1000.3, 65503.0, 1e-6, 3e38}) {
    for (const DType dtype : kValueDTypes) {
      const float top = MaxFinite(dtype);
      const std::vector<float> out = Clamped(absl::StrFormat("clamp(limit=%.17g)|raw", limit), dtype, {top, -top});
      EXPECT_LE(out[0], limit);
      const double step = std::ldexp(1, -static_cast<int>(MantissaBits(dtype)));
      const double subnormal = dtype == DType::kF8E4M3 ? 0x1p-9 : dtype == DType::kF8E5M2 ? 0x1p-16 : 0x1p-24;
      EXPECT_GE(out[0], std::fmin(top, limit) * (1 - step) - subnormal) << limit;
      EXPECT_EQ(out[1], -out[0]);
    }
  }
}

// The largest magnitude that intN takes is no BF16.
TEST(ClampTest, TheLimitOfACodecMakesItTakeAnything) {
  for (const DType dtype : kValueDTypes) {
    EXPECT_THAT(Clamped("clamp(limit=491280)|int4", dtype, {MaxFinite(dtype), 0}), ::testing::SizeIs(2));
  }
}

TEST(ClampTest, MakesLossyCodecsTakeAnything) {
  for (DType dtype : kValueDTypes) {
    const std::vector<std::byte> bits = MakeBits(5000 * DTypeSize(dtype));
    const TensorDesc tensor = MakeTensor("t", dtype, {5000});
    EXPECT_THAT(EncodeOneBlock(MakeChain("clamp|int4", tensor), tensor, bits, nullptr), IsOk());
  }
}

}  // namespace
}  // namespace kvcompress
