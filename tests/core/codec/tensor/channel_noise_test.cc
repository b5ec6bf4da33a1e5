#include "core/codec/tensor/channel_noise.h"

#include <gmock/gmock.h>

#include <random>
#include <vector>

#include "absl/strings/str_format.h"
#include "core/base/half.h"
#include "tests/core/codec/chain_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

constexpr size_t kNoiseRows = 150;
constexpr size_t kNoiseChannels = 40;

std::vector<std::byte> DecodedQuant(const TensorDesc& tensor, const std::vector<std::byte>& values, int bits) {
  const CodecChain chain = MakeChain(absl::StrFormat("quant(bits=%d,per=channel,symmetric=false)", bits), tensor);
  const auto payload = EncodeOneBlock(chain, tensor, values, nullptr);
  EXPECT_THAT(payload, IsOk());
  std::vector<std::byte> decoded(values.size());
  EXPECT_THAT(chain.DecodeBlock(tensor, *payload, decoded), IsOk());
  return decoded;
}

TEST(ChannelNoiseTest, MoreBitsThanTheLeastScalesNeedChangeNothing) {
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
    const TensorDesc tensor = MakeTensor("layer_0_key", dtype, {1, 1, kNoiseRows, kNoiseChannels});
    size_t with = 0, without = 0;
    const float one = dtype == DType::kF16 ? 0x1p-14f : 0x1p-126f;
    for (const float factor : {1.0f, 0x1p-3f, 0x1p-6f, 0x1p-8f, 0x1p-12f, 0x1p-20f}) {
      std::mt19937 random(1);
      std::vector<std::byte> values(kNoiseRows * kNoiseChannels * DTypeSize(dtype));
      for (size_t i = 0; i < kNoiseRows * kNoiseChannels; ++i) {
        StoreFromF32(dtype, (5 * static_cast<float>(i % 7) + Bell(random)) * (one * factor), values.data(), i);
      }
      const ChannelNoise noise(dtype, kNoiseChannels, values);
      for (int bits = 2; bits < 12; ++bits) {
        if (!noise.HasLeastScales(bits)) {
          ++without;
          continue;
        }
        ++with;
        EXPECT_TRUE(DecodedQuant(tensor, values, bits) == DecodedQuant(tensor, values, bits + 1))
            << DTypeName(dtype) << ' ' << factor << ' ' << bits;
        EXPECT_TRUE(noise.HasLeastScales(bits + 1));
      }
    }
    EXPECT_GT(with, 5) << DTypeName(dtype);
    EXPECT_GT(without, 5) << DTypeName(dtype);
  }
}

}  // namespace
}  // namespace kvcompress
