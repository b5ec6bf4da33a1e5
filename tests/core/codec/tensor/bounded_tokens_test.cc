#include <gmock/gmock.h>

#include <set>

#include "absl/strings/str_format.h"
#include "core/quality/quality.h"
#include "core/simd/token_sums.h"
#include "tests/core/codec/chain_harness.h"
#include "tests/core/simd/with_target.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/token_figures.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

using Bytes = std::vector<std::byte>;

constexpr AxisRole kB = AxisRole::kBatch, kH = AxisRole::kHeads, kS = AxisRole::kSeq, kD = AxisRole::kHeadDim;

struct Coded {
  Bytes payloads;
  Bytes decoded;
  std::set<std::string> chosen;
};

// In blocks of `block` values.
Coded CodeInBlocks(const std::string& spec, const TensorDesc& tensor, const Bytes& values, size_t block) {
  const CodecChain chain = MakeChain(spec, tensor);
  const size_t width = DTypeSize(tensor.dtype);
  Coded outcome{.payloads = {}, .decoded = Bytes(values.size()), .chosen = {}};
  const absl::StatusOr<ChainState> state = chain.Analyze(tensor, MemorySource(values), block);
  EXPECT_THAT(state, IsOk());
  for (size_t first = 0; first * width < values.size(); first += block) {
    const size_t count = std::min(block, values.size() / width - first);
    const ByteSpan own = ByteSpan(values).subspan(first * width, count * width);
    Bytes payload(chain.MaxPayloadBytes(tensor, count));
    const auto size = chain.EncodeBlock({tensor, first, count, own}, *state, payload, nullptr);
    EXPECT_THAT(size, IsOk());
    payload.resize(*size);
    if (chain.chooses()) outcome.chosen.insert(*chain.ChosenCodec(tensor, count, payload));
    EXPECT_THAT(
        chain.DecodeBlock(tensor, payload, MutableByteSpan(outcome.decoded).subspan(first * width, count * width)),
        IsOk());
    outcome.payloads.insert(outcome.payloads.end(), payload.begin(), payload.end());
  }
  return outcome;
}

double TokenSnrDb(const TensorDesc& tensor, const Bytes& values, const Bytes& decoded) {
  const ErrorSums sums = TokenFigures(TokenLayoutOf(tensor), tensor.dtype, values, decoded);
  EXPECT_GT(sums.token_deviations, 0);
  return 10 * std::log10(sums.token_deviations / sums.token_error_deviations);
}

size_t ElementsOf(const TensorDesc& tensor) { return *NumElements(tensor.shape); }

TEST(BoundedTokensTest, ABoundGivenIsKeptOnKeysWithConstants) {
  const std::vector<std::pair<std::vector<uint64_t>, std::vector<AxisRole>>> layouts = {
      {{1, 2, 256, 64}, {kB, kH, kS, kD}}, {{1, 3, 100, 80}, {kB, kH, kS, kD}},
      {{2, 200, 2, 32}, {kB, kS, kH, kD}}, {{300, 64}, {kS, kD}},
      {{2, 64, 300}, {kH, kD, kS}},
  };
  for (const DType dtype : kKernelDTypes) {
    for (const auto& [shape, axes] : layouts) {
      const TensorDesc tensor{"layer_0_key", dtype, shape, axes};
      for (const float constant : {0.0f, 8.0f, 350.0f}) {
        const Bytes values = KeyLikeValues(dtype, ElementsOf(tensor), shape.back(), constant);
        for (const double bound : {10.0, 20.0, 30.0, 40.0, 55.0}) {
          for (const char* parameter : {"min_snr", "min_token_snr"}) {
            for (const size_t block : {4096, 5000, 1 << 17}) {
              const std::string spec = absl::StrFormat("bounded(%s=%g)", parameter, bound);
              SCOPED_TRACE(
                  absl::StrFormat("%s, constant %g, %s, blocks of %d", DescribeTensor(tensor), constant, spec, block));
              const Coded outcome = CodeInBlocks(spec, tensor, values, block);
              EXPECT_GE(TokenSnrDb(tensor, values, outcome.decoded), bound);
            }
          }
        }
      }
    }
  }
}

TEST(BoundedTokensTest, KeysWithConstantsAreNotKeptWholeToKeepTheBound) {
  const TensorDesc tensor{"layer_0_key", DType::kBF16, {1, 2, 256, 64}, {kB, kH, kS, kD}};
  const Bytes values = KeyLikeValues(DType::kBF16, ElementsOf(tensor), 64, 350);
  const Coded outcome = CodeInBlocks("bounded(min_snr=30)", tensor, values, 1 << 17);
  EXPECT_THAT(
      outcome.chosen,
      ::testing::ElementsAre(::testing::MatchesRegex("quant\\(bits=[56],per=channel,group=64,symmetric=false,.*")));
  EXPECT_LT(outcome.payloads.size(), values.size() * 7 / 16);
}

TEST(BoundedTokensTest, TheTokenSnrAloneCanBeBound) {
  // Channels vary no more than the whole, so that the token SNR decides with either parameter.
  const TensorDesc tensor{"layer_0_key", DType::kF32, {256, 64}, {kS, kD}};
  const Bytes values = KeyLikeValues(DType::kF32, ElementsOf(tensor), 64, 0);
  EXPECT_EQ(CodeInBlocks("bounded(min_token_snr=20)", tensor, values, 1 << 17).chosen,
            CodeInBlocks("bounded(min_snr=20)", tensor, values, 1 << 17).chosen);
  const TensorDesc without_tokens = MakeTensor("t", DType::kF32, {256, 64});
  EXPECT_EQ(CodeInBlocks("bounded(min_token_snr=20)", without_tokens, values, 1 << 17).chosen,
            CodeInBlocks("bounded(min_snr=20)", without_tokens, values, 1 << 17).chosen);
}

TEST(BoundedTokensTest, TensorsOfOneTokenAreBoundByTheirSnr) {
  const TensorDesc token{"layer_0_key", DType::kF16, {1, 8, 1, 64}, {kB, kH, kS, kD}};
  const Bytes values = MakeValues(DType::kF16, 512, Distribution::kGaussian);
  EXPECT_EQ(CodeInBlocks("bounded(min_snr=20)", token, values, 1 << 17).payloads,
            CodeInBlocks("bounded(min_snr=20)", MakeTensor("t", DType::kF16, {512}), values, 1 << 17).payloads);
}

// The heads of a tensor that are bounded, as a tensor of their own.
Bytes HeadsFrom(uint64_t first, const TensorDesc& tensor, const Bytes& values, TensorDesc& part) {
  part = tensor;
  const auto axis = static_cast<size_t>(std::ranges::find(tensor.axes, kH) - tensor.axes.begin());
  part.shape[axis] -= first;
  uint64_t stride = DTypeSize(tensor.dtype);
  for (size_t i = axis + 1; i < tensor.shape.size(); ++i) stride *= tensor.shape[i];
  Bytes own;
  for (size_t at = 0; at < values.size(); at += stride) {
    if (at / stride % tensor.shape[axis] < first) continue;
    own.insert(own.end(), values.begin() + static_cast<ptrdiff_t>(at),
               values.begin() + static_cast<ptrdiff_t>(at + stride));
  }
  return own;
}

TEST(BoundedTokensTest, RangesOfHeadsKeepTheirBoundWhereverTheHeadsAxisIs) {
  const std::vector<std::pair<std::vector<uint64_t>, std::vector<AxisRole>>> layouts = {
      {{2, 3, 90, 64}, {kB, kH, kS, kD}}, {{2, 90, 3, 64}, {kB, kS, kH, kD}}};
  for (const auto& [shape, axes] : layouts) {
    const TensorDesc tensor{"layer_0_key", DType::kF32, shape, axes};
    const Bytes values = KeyLikeValues(DType::kF32, ElementsOf(tensor), 64, 100);
    for (const size_t block : {3000, 8192, 1 << 17}) {
      for (const double bound : {20.0, 35.0}) {
        SCOPED_TRACE(absl::StrFormat("%s, %g dB, blocks of %d", DescribeTensor(tensor), bound, block));
        const std::string spec = absl::StrFormat("heads(0:int2(group=32),1-:bounded(min_snr=%g))", bound);
        const Coded outcome = CodeInBlocks(spec, tensor, values, block);
        TensorDesc part;
        const Bytes original = HeadsFrom(1, tensor, values, part);
        const double kept = TokenSnrDb(part, original, HeadsFrom(1, tensor, outcome.decoded, part));
        EXPECT_GE(kept, bound);
        EXPECT_LT(outcome.payloads.size(), values.size() / 2);
      }
    }
  }
}

TEST(BoundedTokensTest, EveryInstructionSetMakesTheSameBytes) {
  for (const DType dtype : kKernelDTypes) {
    const TensorDesc tensor{"layer_0_key", dtype, {1, 2, 300, 80}, {kB, kH, kS, kD}};
    const Bytes values = KeyLikeValues(dtype, ElementsOf(tensor), 80, 350);
    for (double bound = 18; bound < 45; bound += 1.7) {
      const std::string spec = absl::StrFormat("bounded(min_snr=%g)", bound);
      const Bytes expected = CodeInBlocks(spec, tensor, values, 20000).payloads;
      for (const int64_t target : UsableTargets()) {
        const WithTarget with_target(target);
        EXPECT_EQ(CodeInBlocks(spec, tensor, values, 20000).payloads, expected) << spec;
      }
    }
  }
}

TEST(BoundedTokensTest, BehindSparseTheSnrOfWhatIsLeftIsBound) {
  const TensorDesc tensor{"layer_0_key", DType::kF16, {256, 64}, {kS, kD}};
  const Bytes values = KeyLikeValues(DType::kF16, ElementsOf(tensor), 64, 0);
  const Coded outcome = CodeInBlocks("sparse(ratio=0.5)|bounded(min_snr=20)", tensor, values, 1 << 17);
  EXPECT_LT(outcome.payloads.size(), values.size() / 4);
}

}  // namespace
}  // namespace kvcompress
