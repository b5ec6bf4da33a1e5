#include "core/codec/chain.h"

#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/core/codec/chain_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

// Every registered codec, by its examples: a new row of the registry is tested here without being told.
class EveryChainTest : public ::testing::TestWithParam<std::string_view> {
 protected:
  CodecChain chain_ = MakeChain(GetParam());
};

INSTANTIATE_TEST_SUITE_P(All, EveryChainTest, ::testing::ValuesIn(AllExampleSpecs()),
                         [](const auto& param_info) { return absl::StrFormat("%d", param_info.index); });

TEST_P(EveryChainTest, RoundTripsAndMeasuresWhatItDecodes) {
  for (DType dtype : kValueDTypes) {
    const CodecChain chain = MakeChain(GetParam(), MakeTensorOfHeads(dtype, 1));
    for (size_t count : {1, 7, 31, 64, 65, 200, 1024, 4099}) {
      for (Distribution distribution : kAllDistributions) {
        SCOPED_TRACE(absl::StrFormat("%s %d distribution %d", DTypeName(dtype), count, distribution));
        const TensorDesc tensor = MakeTensorOfHeads(dtype, count);
        const std::vector<std::byte> values = MakeValues(dtype, count, distribution);
        ErrorSums sums;
        const auto payload = EncodeOneBlock(chain, tensor, values, &sums);
        ASSERT_THAT(payload, IsOk());
        std::vector<std::byte> decoded(values.size(), std::byte{0xaa});
        ASSERT_THAT(chain.DecodeBlock(tensor, *payload, decoded), IsOk());
        if (chain.lossless()) {
          EXPECT_EQ(decoded, values);
          EXPECT_EQ(sums.max_abs_error, 0);
        }
        double error_squares = 0;
        double squares = 0;
        double max_error = 0;
        for (size_t i = 0; i < count; ++i) {
          const double x = LoadAsF32(dtype, values.data(), i);
          const double e = x - static_cast<double>(LoadAsF32(dtype, decoded.data(), i));
          error_squares += e * e;
          squares += x * x;
          max_error = std::max(max_error, std::fabs(e));
        }
        EXPECT_EQ(sums.count, count);
        EXPECT_NEAR(sums.sum_error_squares, error_squares, 1e-6 * error_squares);
        EXPECT_NEAR(sums.sum_squares, squares, 1e-6 * squares);
        EXPECT_NEAR(sums.max_abs_error, max_error, 1e-6 * max_error);
      }
    }
  }
}

#if defined(__x86_64__)
// Programs that compute may round other ways, and take subnormal values for 0 (torch.set_flush_denormal).
TEST_P(EveryChainTest, WhatItMakesDoesNotDependOnTheCallersFloatingPoint) {
  constexpr uint32_t kFlush = 0x8040, kUpward = 0x4000, kDownward = 0x2000;
  const uint32_t usual = __builtin_ia32_stmxcsr();
  const absl::Cleanup back = [&] { __builtin_ia32_ldmxcsr(usual); };
  struct Made {
    std::string spec;
    std::vector<std::byte> payload, decoded;
    ErrorSums sums;
  };
  for (DType dtype : kValueDTypes) {
    for (Distribution distribution : kAllDistributions) {
      const TensorDesc tensor = MakeTensorOfHeads(dtype, 1000);
      const std::vector<std::byte> values = MakeValues(dtype, 1000, distribution);
      const auto make = [&](uint32_t control, Made& made) {
        __builtin_ia32_ldmxcsr(usual | control);
        const CodecChain chain = MakeChain(GetParam(), MakeTensorOfHeads(dtype, 1));
        made.spec = chain.spec();
        const auto payload = EncodeOneBlock(chain, tensor, values, &made.sums);
        made.decoded.resize(values.size());
        const absl::Status status = payload.ok() ? chain.DecodeBlock(tensor, *payload, made.decoded) : payload.status();
        const bool kept = (__builtin_ia32_stmxcsr() & (kFlush | kUpward | kDownward)) == control;
        __builtin_ia32_ldmxcsr(usual);
        EXPECT_TRUE(kept);
        ASSERT_THAT(status, IsOk());
        made.payload = *payload;
      };
      Made expected;
      make(0, expected);
      for (const uint32_t control : {kFlush | kUpward, kDownward}) {
        SCOPED_TRACE(absl::StrFormat("%s distribution %d control %x", DTypeName(dtype), distribution, control));
        Made made;
        make(control, made);
        EXPECT_EQ(made.spec, expected.spec);
        EXPECT_EQ(made.payload, expected.payload);
        EXPECT_EQ(made.decoded, expected.decoded);
        EXPECT_EQ(made.sums.sum_error_squares, expected.sums.sum_error_squares);
        EXPECT_EQ(made.sums.sum_squares, expected.sums.sum_squares);
        EXPECT_EQ(made.sums.max_abs_error, expected.sums.max_abs_error);
      }
    }
  }
}
#endif

// A tensor in blocks of kSmallBlock values through a chain and back.
constexpr size_t kSmallBlock = 256;
std::vector<std::byte> Through(const CodecChain& chain, const TensorDesc& tensor,
                               const std::vector<std::byte>& values) {
  const size_t width = DTypeSize(tensor.dtype);
  const ChainState state = *chain.Analyze(tensor, MemorySource(ByteSpan(values)), kSmallBlock);
  std::vector<std::byte> decoded(values.size());
  for (size_t first = 0; first * width < values.size(); first += kSmallBlock) {
    const size_t n = std::min(kSmallBlock, values.size() / width - first);
    const ByteSpan block = ByteSpan(values).subspan(first * width, n * width);
    std::vector<std::byte> payload(chain.MaxPayloadBytes(tensor, n));
    const auto size = chain.EncodeBlock({tensor, first, n, block}, state, payload, nullptr);
    EXPECT_THAT(size, IsOk());
    EXPECT_THAT(chain.DecodeBlock(tensor, ByteSpan(payload).first(*size),
                                  MutableByteSpan(decoded).subspan(first * width, n * width)),
                IsOk());
  }
  return decoded;
}

TEST(ChainTest, TransformsInARowDoWhatTheyDoOneByOne) {
  constexpr std::string_view kTransforms[] = {"sparse(ratio=0.3)",   "sparse(ratio=0.6)",   "sparse(ratio=0.95)",
                                              "clip(percentile=50)", "clip(percentile=97)", "clamp(limit=0.75)",
                                              "clamp(limit=65504)"};
  for (const DType dtype : kValueDTypes) {
    std::vector<std::byte> values = MakeValues(dtype, 1000, Distribution::kGaussian);
    for (size_t i = 0; i < 200; i += 7) StoreFromF32(dtype, i % 2 == 0 ? NAN : INFINITY, values.data(), i);
    const TensorDesc tensor = MakeTensor("t", dtype, {1000});
    for (const std::string_view first : kTransforms) {
      for (const std::string_view second : kTransforms) {
        SCOPED_TRACE(absl::StrFormat("%s|%s %s", first, second, DTypeName(dtype)));
        const auto once = Through(MakeChain(absl::StrFormat("%s|raw", first)), tensor, values);
        const auto twice = Through(MakeChain(absl::StrFormat("%s|raw", second)), tensor, once);
        EXPECT_EQ(Through(MakeChain(absl::StrFormat("%s|%s|raw", first, second)), tensor, values), twice);
      }
    }
  }
}

// A frame has no room for a longer one.
TEST(ChainTest, SpecsThatBecomeTooLongWithAllTheirParametersAreRefused) {
  std::string parts;
  for (int i = 0; i < 8; ++i) absl::StrAppendFormat(&parts, "%d-%s:quant,", i, i < 7 ? absl::StrCat(i) : "");
  parts.pop_back();
  EXPECT_THAT(ChainSpec::Parse(absl::StrFormat("heads(%s)", parts)),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       "codec spec of 607 bytes with all its parameters is above the limit of 512"));
}

TEST(ChainTest, LosslessChainsKeepEveryBit) {
  int tested = 0;
  for (std::string_view spec : AllExampleSpecs()) {
    for (DType dtype : kAllDTypes) {
      const absl::StatusOr<CodecChain> resolved = ChainSpec::Parse(spec)->Resolve({}, MakeTensorOfHeads(dtype, 1));
      if (!resolved.ok() || !resolved->lossless()) continue;
      ++tested;
      const CodecChain& chain = *resolved;
      const std::vector<std::byte> bits = MakeBits(2000 * DTypeSize(dtype));
      ErrorSums sums;
      const TensorDesc tensor = MakeTensorOfHeads(dtype, 2000);
      const auto payload = EncodeOneBlock(chain, tensor, bits, &sums);
      ASSERT_THAT(payload, IsOk());
      EXPECT_EQ(sums.max_abs_error, 0);
      std::vector<std::byte> decoded(bits.size());
      ASSERT_THAT(chain.DecodeBlock(tensor, *payload, decoded), IsOk());
      EXPECT_EQ(decoded, bits) << spec;
    }
  }
  EXPECT_GE(tested, 4 * static_cast<int>(kAllDTypes.size()));
}

// A payload that no encoder wrote is refused or decodes to something; it never reads or writes out of bounds (which is
// what the sanitizer builds of this test look for).
TEST_P(EveryChainTest, DamagedPayloadsAreHarmless) {
  for (DType dtype : {DType::kF16, DType::kF32}) {
    const size_t count = 150;
    const auto values = MakeValues(dtype, count, Distribution::kOutliers);
    const TensorDesc tensor = MakeTensorOfHeads(dtype, count);
    const auto payload = EncodeOneBlock(chain_, tensor, values, nullptr);
    ASSERT_THAT(payload, IsOk());
    std::vector<std::byte> decoded(values.size());
    for (size_t size = 0; size < payload->size(); ++size) {
      const std::vector<std::byte> cut(payload->begin(), payload->begin() + static_cast<ptrdiff_t>(size));
      EXPECT_THAT(chain_.DecodeBlock(tensor, cut, decoded), StatusIs(absl::StatusCode::kDataLoss, ::testing::_));
    }
    std::vector<std::byte> longer = *payload;
    longer.push_back(std::byte{0});
    EXPECT_THAT(chain_.DecodeBlock(tensor, longer, decoded), StatusIs(absl::StatusCode::kDataLoss, ::testing::_));
    for (size_t bit = 0; bit < 8 * payload->size(); ++bit) {
      std::vector<std::byte> flipped = *payload;
      flipped[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
      const absl::Status status = chain_.DecodeBlock(tensor, flipped, decoded);
      EXPECT_TRUE(status.ok() || absl::IsDataLoss(status)) << status;
    }
  }
}

TEST(ChainTest, PlainIntPayloadsHaveTheirFormulasSize) {
  const auto chain = MakeChain("int4(group=64)");
  const auto values = MakeValues(DType::kF16, 1024, Distribution::kGaussian);
  const auto payload = EncodeOneBlock(chain, MakeTensor("t", DType::kF16, {1024}), values, nullptr);
  ASSERT_THAT(payload, IsOk());
  EXPECT_EQ(payload->size(), 8 + 2 * 16 + 512);  // table, scales, codes
}

TEST(ChainTest, ValuesThatCannotBeHeldAreNamed) {
  const auto chain = MakeChain("int4(group=64)");
  const struct {
    float value;
    DType dtype;
    std::string_view text;
  } cases[] = {
      {std::numeric_limits<float>::quiet_NaN(), DType::kF16, "NaN"},
      {std::numeric_limits<float>::infinity(), DType::kBF16, "infinity"},
      {-std::numeric_limits<float>::infinity(), DType::kF32, "-infinity"},
  };
  for (const auto& one : cases) {
    auto values = MakeValues(one.dtype, 300, Distribution::kGaussian);
    StoreFromF32(one.dtype, one.value, values.data(), 211);
    EXPECT_THAT(EncodeOneBlock(chain, MakeTensor("layer_3_key", one.dtype, {300}), values, nullptr),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         absl::StrFormat("tensor \"layer_3_key\": value 211 is %s, which int4 cannot hold "
                                         "(on_nonfinite=lossless stores its block as it is; clamp|int4(group=64) "
                                         "makes %s)",
                                         one.text, std::isnan(one.value) ? "0 of it" : "it finite")));
  }
  auto values = MakeValues(DType::kF32, 300, Distribution::kGaussian);
  StoreFromF32(DType::kF32, 3e38f, values.data(), 211);
  EXPECT_THAT(EncodeOneBlock(chain, MakeTensor("layer_3_key", DType::kF32, {300}), values, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       "tensor \"layer_3_key\": value 211 is 3e+38, which int4 cannot hold "
                       "(quant(symmetric=true), blocknorm, near-lossless and lossless do)"));
}

TEST(ChainTest, ByteCodecsNeverMakeAStreamLarger) {
  const auto chain = MakeChain("raw|zstd(level=1)|zstd(level=1)");
  const std::vector<std::byte> noise = MakeBits(8192);
  const TensorDesc tensor = MakeTensor("t", DType::kF16, {4096});
  const auto payload = EncodeOneBlock(chain, tensor, noise, nullptr);
  ASSERT_THAT(payload, IsOk());
  EXPECT_EQ(payload->size(), noise.size() + 12);
  std::vector<std::byte> decoded(noise.size());
  ASSERT_THAT(chain.DecodeBlock(tensor, *payload, decoded), IsOk());
  EXPECT_EQ(decoded, noise);
}

// LZ4's optimal parser reads before the begin of an empty stream.
TEST(ChainTest, EmptyStreamsPassEveryByteCodec) {
  for (const char* byte_codec : {"lz4(level=-64)", "lz4", "lz4(level=3)", "lz4(level=12)", "zstd(level=-7)",
                                 "zstd(level=19)", "huffman", "rans", "arithmetic", "cabac", "stored"}) {
    const CodecChain chain = MakeChain(absl::StrCat("clamp|int8|", byte_codec));
    for (const uint64_t count : {0, 1, 64, 4099}) {
      SCOPED_TRACE(absl::StrFormat("%s %d", byte_codec, count));
      const TensorDesc tensor = MakeTensor("t", DType::kF16, {count});
      const std::vector<std::byte> values = MakeValues(DType::kF16, count, Distribution::kGaussian);
      const auto payload = EncodeOneBlock(chain, tensor, values, nullptr);
      ASSERT_THAT(payload, IsOk());
      std::vector<std::byte> decoded(values.size());
      EXPECT_THAT(chain.DecodeBlock(tensor, *payload, decoded), IsOk());
    }
  }
}

TEST(ChainTest, SeveralByteCodecsUndoEachOther) {
  const auto chain = MakeChain("int4(group=32)|zstd(level=-7)|zstd(level=3)|zstd(level=1)");
  const auto values = MakeValues(DType::kF32, 100000, Distribution::kConstant);
  ErrorSums sums;
  const TensorDesc tensor = MakeTensor("t", DType::kF32, {100000});
  const auto payload = EncodeOneBlock(chain, tensor, values, &sums);
  ASSERT_THAT(payload, IsOk());
  std::vector<std::byte> decoded(values.size());
  ASSERT_THAT(chain.DecodeBlock(tensor, *payload, decoded), IsOk());
  EXPECT_LT(sums.max_abs_error, 0.001);
}

}  // namespace
}  // namespace kvcompress
