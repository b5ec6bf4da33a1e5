#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <random>

#include "absl/strings/str_format.h"
#include "core/codec/tensor/transform/tables.h"
#include "core/simd/rotary.h"
#include "core/simd/token_sums.h"
#include "core/simd/trellis.h"
#include "tests/core/codec/chain_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/token_figures.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

using Bytes = std::vector<std::byte>;

TensorDesc Keys(DType dtype, std::vector<uint64_t> shape,
                std::vector<AxisRole> axes = {AxisRole::kBatch, AxisRole::kHeads, AxisRole::kSeq, AxisRole::kHeadDim}) {
  return {.name = "layer_1_key", .dtype = dtype, .shape = std::move(shape), .axes = std::move(axes)};
}

// Values of channels with means and deviations of their own.
std::vector<float> ChannelValues(size_t sequences, size_t tokens, size_t channels, uint32_t seed = 1) {
  std::mt19937 random(seed);
  std::vector<float> values(sequences * tokens * channels);
  for (size_t s = 0; s < sequences; ++s) {
    std::vector<float> means(channels), deviations(channels);
    for (size_t c = 0; c < channels; ++c) {
      means[c] = 4 * Bell(random);
      deviations[c] = std::exp2(Bell(random));
    }
    for (size_t i = 0; i < tokens * channels; ++i) {
      values[s * tokens * channels + i] = means[i % channels] + deviations[i % channels] * Bell(random);
    }
  }
  return values;
}

Bytes BytesOf(DType dtype, const std::vector<float>& values) {
  Bytes bytes(values.size() * DTypeSize(dtype));
  for (size_t i = 0; i < values.size(); ++i) StoreFromF32(dtype, values[i], bytes.data(), i);
  return bytes;
}

struct CodedTensor {
  ErrorSums sums = {};
  size_t bytes = 0;  // of payloads
  Bytes decoded;
  double snr = 0;
};

CodedTensor CodeTensor(const std::string& spec, const TensorDesc& tensor, const Bytes& values, size_t block = 0) {
  const CodecChain chain = MakeChain(spec, tensor);
  const size_t width = DTypeSize(tensor.dtype);
  if (block == 0) block = chain.BlockElements(tensor);
  CodedTensor coded{.decoded = Bytes(values.size())};
  const absl::StatusOr<ChainState> state = chain.Analyze(tensor, MemorySource(values), block);
  EXPECT_THAT(state, IsOk());
  for (size_t first = 0; first * width < values.size(); first += block) {
    const size_t count = std::min(block, values.size() / width - first);
    Bytes payload(chain.MaxPayloadBytes(tensor, count));
    const auto size = chain.EncodeBlock({tensor, first, count, ByteSpan(values).subspan(first * width, count * width)},
                                        *state, payload, &coded.sums);
    EXPECT_THAT(size, IsOk());
    coded.bytes += *size;
    EXPECT_THAT(chain.DecodeBlock(tensor, ByteSpan(payload).first(*size),
                                  MutableByteSpan(coded.decoded).subspan(first * width, count * width)),
                IsOk());
  }
  double sum = 0, squares = 0, errors = 0;
  for (size_t i = 0; i < values.size() / width; ++i) {
    const double x = LoadAsF32(tensor.dtype, values.data(), i);
    const double e = x - static_cast<double>(LoadAsF32(tensor.dtype, coded.decoded.data(), i));
    sum += x;
    squares += x * x;
    errors += e * e;
  }
  const double variance = squares - sum * sum / static_cast<double>(values.size() / width);
  coded.snr = 10 * std::log10(variance / errors);
  return coded;
}

double BitsOfTensor(const CodedTensor& coded, DType dtype) {
  return 8.0 * static_cast<double>(coded.bytes) / static_cast<double>(coded.decoded.size() / DTypeSize(dtype));
}

TEST(TransformTest, BitsAreABudgetForAllThatAFrameHas) {
  const TensorDesc tensor = Keys(DType::kF16, {1, 2, 256, 64});
  const Bytes values = BytesOf(DType::kF16, ChannelValues(2, 256, 64));
  for (const double bits : {1.0, 2.125, 3.0, 4.25, 6.0, 9.5}) {
    const CodedTensor coded = CodeTensor(absl::StrFormat("transform(bits=%g)", bits), tensor, values);
    EXPECT_LE(BitsOfTensor(coded, DType::kF16), bits - 0.009) << bits;  // 36 bytes are left for the frame
    EXPECT_GE(BitsOfTensor(coded, DType::kF16), bits - 0.055) << bits;
  }
}

TEST(TransformTest, SnrIsAboutTheMeanOfTheTensor) {
  const TensorDesc tensor = Keys(DType::kF32, {512, 64}, {AxisRole::kOther, AxisRole::kOther});
  std::vector<float> values = ChannelValues(2, 256, 64);
  for (float& value : values) value += 1000;
  const CodedTensor coded = CodeTensor("transform(snr=20)", tensor, BytesOf(DType::kF32, values));
  EXPECT_GE(coded.snr, 19.99);
  EXPECT_LE(coded.snr, 20.1);
}

// By the values and by what changes from token to token, which here is less.
TEST(TransformTest, SnrIsReached) {
  const TensorDesc tensor = Keys(DType::kBF16, {1, 2, 256, 64});
  const Bytes values = BytesOf(DType::kBF16, ChannelValues(2, 256, 64));
  for (const double snr : {8.0, 20.0, 35.0}) {
    for (const char* trellis : {"true", "false"}) {
      const CodedTensor coded =
          CodeTensor(absl::StrFormat("transform(snr=%g,trellis=%s)", snr, trellis), tensor, values);
      const ErrorSums sums = TokenFigures(TokenLayoutOf(tensor), DType::kBF16, values, coded.decoded);
      const double token_snr = 10 * std::log10(sums.token_deviations / sums.token_error_deviations);
      EXPECT_GE(token_snr, snr);
      EXPECT_LE(token_snr, snr + 0.1);
      EXPECT_GE(coded.snr, snr);
    }
  }
  const TensorDesc rows = Keys(DType::kF32, {256, 64}, {AxisRole::kOther, AxisRole::kOther});
  const CodedTensor coded = CodeTensor("transform(snr=20)", rows, BytesOf(DType::kF32, ChannelValues(1, 256, 64)));
  EXPECT_GE(coded.snr, 20);
  EXPECT_LE(coded.snr, 20.2);
}

TEST(TransformTest, TheTrellisTakesFewerBitsForTheSameError) {
  const TensorDesc tensor = Keys(DType::kF32, {1, 1, 2048, 64});
  const Bytes values = BytesOf(DType::kF32, ChannelValues(1, 2048, 64));
  const double with = BitsOfTensor(CodeTensor("transform(snr=30)", tensor, values), DType::kF32);
  const double without = BitsOfTensor(CodeTensor("transform(snr=30,trellis=false)", tensor, values), DType::kF32);
  EXPECT_LT(with, without - 0.1);
}

// A Gaussian source at high rate costs its bound and, with the trellis, less than 0.13 bits more.
TEST(TransformTest, CostsLittleMoreThanTheBoundOfItsSource) {
  const TensorDesc tensor = Keys(DType::kF32, {1, 1, 2048, 64});
  std::mt19937 random(4);
  std::vector<float> gaussian(2048 * 64);
  for (float& value : gaussian) value = Bell(random);
  const CodedTensor coded = CodeTensor("transform(step=0.1,sinks=false)", tensor, BytesOf(DType::kF32, gaussian));
  EXPECT_LT(BitsOfTensor(coded, DType::kF32), coded.snr / 6.0206 + 0.14);
}

TEST(TransformTest, WithoutTrellisNoValueIsOffByMoreThanHalfAStep) {
  std::vector<float> values = ChannelValues(1, 100, 80, 3);
  values[5 * 80 + 7] = 3e6f;  // of which a step is still 23 bits
  values[50 * 80 + 3] = -1e5f;
  const TensorDesc tensor = Keys(DType::kF32, {1, 1, 100, 80});
  const Bytes bytes = BytesOf(DType::kF32, values);
  const CodedTensor coded = CodeTensor("transform(step=2,trellis=false,sinks=false)", tensor, bytes);
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_NEAR(LoadAsF32(DType::kF32, coded.decoded.data(), i), values[i], 1.001 + 1e-6 * std::fabs(values[i])) << i;
  }
}

TEST(TransformTest, TheTrellisIsOffByNoMoreThanTwoSteps) {
  const std::vector<float> values = ChannelValues(2, 70, 48, 5);
  const TensorDesc tensor = Keys(DType::kF32, {1, 2, 70, 48});
  const CodedTensor coded = CodeTensor("transform(step=0.5)", tensor, BytesOf(DType::kF32, values));
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_NEAR(LoadAsF32(DType::kF32, coded.decoded.data(), i), values[i], 1.001) << i;
  }
}

TEST(TransformTest, TheFirstTokensHaveFinerSteps) {
  constexpr size_t kTokens = 128, kChannels = 256;
  std::mt19937 random(6);
  std::vector<float> values(kTokens * kChannels);
  for (float& value : values) value = 2 * Bell(random);
  const TensorDesc tensor = Keys(DType::kF32, {1, 1, kTokens, kChannels});
  const Bytes bytes = BytesOf(DType::kF32, values);
  // The deviation of a token's errors: half a step, and a little more where the trellis begins, as its first state is
  // one.
  const auto error_of = [&](const std::string& spec, size_t token) {
    const CodedTensor coded = CodeTensor(spec, tensor, bytes);
    double sum = 0;
    for (size_t i = token * kChannels; i < (token + 1) * kChannels; ++i) {
      sum += std::pow(LoadAsF32(DType::kF32, coded.decoded.data(), i) - values[i], 2);
    }
    return std::sqrt(sum / kChannels);
  };
  const auto expect_step = [&](const std::string& spec, size_t token, double step) {
    EXPECT_GT(error_of(spec, token), 0.45 * step) << spec << " " << token;
    EXPECT_LT(error_of(spec, token), 0.66 * step) << spec << " " << token;
  };
  expect_step("transform(step=0.5)", 0, 0.5 / 8);
  expect_step("transform(step=0.5)", 1, 0.5 / 4);
  expect_step("transform(step=0.5)", 2, 0.5 / 2);
  expect_step("transform(step=0.5)", 3, 0.5 / 2);
  expect_step("transform(step=0.5)", 4, 0.5);
  expect_step("transform(step=0.5,sinks=false)", 0, 0.5);
  expect_step("transform(step=0.5,start=2)", 1, 0.5 / 2);
  expect_step("transform(step=0.5,start=4)", 0, 0.5);  // does not begin where the sequence does
}

// A sequence of keys as a model makes them: turned by their position.
std::vector<float> TurnedValues(size_t heads, size_t tokens, size_t dims, uint64_t start, bool tokens_first) {
  std::vector<float> values = ChannelValues(heads, tokens, dims, 8);
  simd::RotaryTable table;
  table.Make({.theta = 10000}, dims, start, tokens);
  simd::TurnRows(table, 0, simd::RotaryPairs::kHalf, simd::RotaryTurn::kForward, values.data(), tokens, dims);
  for (size_t h = 1; h < heads; ++h) {
    simd::TurnRows(table, 0, simd::RotaryPairs::kHalf, simd::RotaryTurn::kForward, values.data() + h * tokens * dims,
                   tokens, dims);
  }
  if (!tokens_first) return values;
  std::vector<float> other(values.size());
  for (size_t h = 0; h < heads; ++h) {
    for (size_t t = 0; t < tokens; ++t) {
      std::copy_n(values.begin() + static_cast<ptrdiff_t>((h * tokens + t) * dims), dims,
                  other.begin() + static_cast<ptrdiff_t>((t * heads + h) * dims));
    }
  }
  return other;
}

TEST(TransformTest, UndoingTheRotationSavesBitsInEveryLayout) {
  for (const bool tokens_first : {false, true}) {
    const TensorDesc tensor = tokens_first
                                  ? Keys(DType::kF16, {1, 256, 3, 64},
                                         {AxisRole::kBatch, AxisRole::kSeq, AxisRole::kHeads, AxisRole::kHeadDim})
                                  : Keys(DType::kF16, {1, 3, 256, 64},
                                         {AxisRole::kBatch, AxisRole::kHeads, AxisRole::kSeq, AxisRole::kHeadDim});
    const Bytes values = BytesOf(DType::kF16, TurnedValues(3, 256, 64, 1000, tokens_first));
    const double plain = BitsOfTensor(CodeTensor("transform(snr=30)", tensor, values), DType::kF16);
    const double undone =
        BitsOfTensor(CodeTensor("transform(snr=30,theta=10000,start=1000)", tensor, values), DType::kF16);
    const double wrong = BitsOfTensor(
        CodeTensor("transform(snr=30,theta=10000,rotary=interleaved,start=1000)", tensor, values), DType::kF16);
    EXPECT_LT(undone, plain - 0.4);
    EXPECT_LT(wrong, plain + 0.02);  // what does not help is not done
    const auto gain = [&](const char* spec) { return CodeTensor(spec, tensor, values).sums.rotary; };
    const simd::RotaryGain gained = gain("transform(step=0.1,theta=10000,start=1000)");
    EXPECT_EQ(gained.values, 3 * 256 * 64);
    EXPECT_EQ(gained.turned, gained.values);
    EXPECT_NEAR(gained.bits / static_cast<double>(gained.values), plain - undone, 0.3);
    EXPECT_EQ(gain("transform(step=0.1,theta=3,start=1000)"), simd::RotaryGain{.values = 3 * 256 * 64});
    EXPECT_EQ(gain("transform(step=0.1)"), simd::RotaryGain{});
  }
}

TEST(TransformTest, LatentsTurnWhereTheirRotaryPartIs) {
  constexpr size_t kTokens = 200, kDims = 96, kOffset = 64;
  const TensorDesc tensor = Keys(DType::kF16, {kTokens, kDims}, {AxisRole::kSeq, AxisRole::kHeadDim});
  std::vector<float> values = ChannelValues(1, kTokens, kDims, 9);
  simd::RotaryTable table;
  table.Make({.theta = 10000}, kDims - kOffset, 0, kTokens);
  simd::TurnRows(table, 0, simd::RotaryPairs::kInterleaved, simd::RotaryTurn::kForward, values.data() + kOffset,
                 kTokens, kDims);
  const Bytes bytes = BytesOf(DType::kF16, values);
  const double plain = BitsOfTensor(CodeTensor("transform(snr=30,sinks=false)", tensor, bytes), DType::kF16);
  const double undone = BitsOfTensor(
      CodeTensor("transform(snr=30,sinks=false,theta=10000,rotary=interleaved,rotary_offset=64)", tensor, bytes),
      DType::kF16);
  EXPECT_LT(undone, plain - 0.2);
}

// Wherever blocks begin and end: within tokens, within sequences.
TEST(TransformTest, BlocksThatCutTokensDecode) {
  const TensorDesc tensor = Keys(DType::kF32, {2, 3, 40, 48});
  const std::vector<float> values = ChannelValues(6, 40, 48, 10);
  const Bytes bytes = BytesOf(DType::kF32, values);
  for (const size_t block : {100, 128, 640, 1920, 5000}) {
    const CodedTensor coded = CodeTensor("transform(step=0.25,theta=10000)", tensor, bytes, block);
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_NEAR(LoadAsF32(DType::kF32, coded.decoded.data(), i), values[i], 0.8) << block << " " << i;
    }
  }
}

TEST(TransformTest, BlocksHaveWholeSequencesOrWholeTokens) {
  const auto block_of = [](std::vector<uint64_t> shape, std::vector<AxisRole> axes) {
    const TensorDesc tensor = Keys(DType::kF16, std::move(shape), std::move(axes));
    return MakeChain("transform(bits=3)", tensor).BlockElements(tensor);
  };
  EXPECT_EQ(block_of({1, 8, 256, 128}, {AxisRole::kBatch, AxisRole::kHeads, AxisRole::kSeq, AxisRole::kHeadDim}),
            4 * 256 * 128);
  EXPECT_EQ(block_of({1, 8, 2000, 128}, {AxisRole::kBatch, AxisRole::kHeads, AxisRole::kSeq, AxisRole::kHeadDim}),
            2000 * 128);
  EXPECT_EQ(block_of({1, 8, 4096, 128}, {AxisRole::kBatch, AxisRole::kHeads, AxisRole::kSeq, AxisRole::kHeadDim}),
            1024 * 128);
  EXPECT_EQ(block_of({1, 4096, 8, 128}, {AxisRole::kBatch, AxisRole::kSeq, AxisRole::kHeads, AxisRole::kHeadDim}),
            128 * 1024);
  EXPECT_EQ(block_of({10000, 576}, {AxisRole::kSeq, AxisRole::kHeadDim}) % 576, 0);
  EXPECT_EQ(block_of({1000, 1000}, {AxisRole::kOther, AxisRole::kOther}), 1 << 17);
}

// Pages that look alike say little of themselves.
TEST(TransformTest, PagesOfATensorShareWhatTheySay) {
  const std::vector<float> values = ChannelValues(1, 512, 128, 11);
  const Bytes bytes = BytesOf(DType::kF16, values);
  const double whole =
      BitsOfTensor(CodeTensor("transform(step=0.5,sinks=false)",
                              Keys(DType::kF16, {512, 128}, {AxisRole::kSeq, AxisRole::kHeadDim}), bytes),
                   DType::kF16);
  const double pages = BitsOfTensor(
      CodeTensor("transform(step=0.5,sinks=false)",
                 Keys(DType::kF16, {32, 16, 128}, {AxisRole::kBatch, AxisRole::kSeq, AxisRole::kHeadDim}), bytes),
      DType::kF16);
  EXPECT_LT(pages, whole + 0.2);
}

// A raw token would cost 16 bits a value, which are 0.0625 of all values.
TEST(TransformTest, ATokenOfAnotherSizeCostsLittleMoreThanItsBits) {
  std::vector<float> values = ChannelValues(1, 256, 64, 12);
  const TensorDesc tensor = Keys(DType::kF16, {1, 1, 256, 64});
  const double usual =
      BitsOfTensor(CodeTensor("transform(step=0.5,sinks=false)", tensor, BytesOf(DType::kF16, values)), DType::kF16);
  for (size_t i = 100 * 64; i < 101 * 64; ++i) values[i] *= 60;
  const double with =
      BitsOfTensor(CodeTensor("transform(step=0.5,sinks=false)", tensor, BytesOf(DType::kF16, values)), DType::kF16);
  EXPECT_LT(with, usual + 0.0625 + 0.02);
}

TEST(TransformTest, WhatItCannotHoldIsRefused) {
  const CodecChain chain = MakeChain("transform(step=0.1)");
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 0x1.1p123f}) {
    std::vector<float> values = ChannelValues(1, 10, 64);
    values[77] = bad;
    EXPECT_THAT(EncodeOneBlock(chain, MakeTensor("t", DType::kF32, {10, 64}), BytesOf(DType::kF32, values), nullptr),
                StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("value 77 is")));
  }
}

TEST(TransformTest, TheLargestValuesOfADTypeDecode) {
  for (const DType dtype : {DType::kF16, DType::kF32}) {
    const float most = dtype == DType::kF16 ? 65504.0f : 0x1p123f;
    std::vector<float> values = ChannelValues(1, 64, 64);
    for (size_t i = 0; i < values.size(); i += 3) values[i] = i % 2 == 0 ? most : -most;
    const TensorDesc tensor = Keys(dtype, {1, 1, 64, 64});
    const CodedTensor coded = CodeTensor("transform(step=0.001,theta=10000)", tensor, BytesOf(dtype, values));
    EXPECT_GT(coded.snr, 100);
  }
}

TEST(TransformTest, OneTargetMustBeGiven) {
  for (const char* spec : {"transform", "transform(bits=0)", "transform(bits=3,snr=20)", "transform(snr=3,step=1)"}) {
    EXPECT_THAT(ChainSpec::Parse(spec),
                StatusIs(absl::StatusCode::kInvalidArgument, "transform: give one of bits, snr and step, above 0"));
  }
  EXPECT_THAT(ChainSpec::Parse("transform(bits=3,theta=0.5)"),
              StatusIs(absl::StatusCode::kInvalidArgument, "transform: theta is below 1"));
  EXPECT_THAT(ChainSpec::Parse("transform(bits=3,rotary_dims=3)"),
              StatusIs(absl::StatusCode::kInvalidArgument, "transform: rotary_dims is odd"));
  EXPECT_EQ(ChainSpec::Parse("transform(bits=3,trellis=true,theta=0)")->text(), "transform(bits=3)");
}

TEST(TransformTest, WithinHeadsItLooksAtNothingButItsStep) {
  EXPECT_THAT(ChainSpec::Parse("heads(0-:transform(step=0.5))"), IsOk());
  EXPECT_THAT(ChainSpec::Parse("heads(0-:transform(bits=3))"),
              StatusIs(absl::StatusCode::kInvalidArgument, ::testing::_));
}

TEST(TransformTablesTest, AreProbabilitiesOfAGaussianSource) {
  for (const bool trellis : {false, true}) {
    const auto tables = ChannelTables(trellis);
    ASSERT_EQ(tables.size(), 33);
    for (size_t i = 0; i < tables.size(); ++i) {
      for (size_t quantizer = 0; quantizer < (trellis ? 2 : 1); ++quantizer) {
        const uint8_t q = quantizer != 0 ? simd::kOddQuantizer : 0;
        uint32_t sum = tables[i].symbols[simd::kEscape | q] & 0xffff;
        EXPECT_EQ(sum, 1);
        double second_moment = 0;
        for (int k = -tables[i].reach[quantizer]; k <= tables[i].reach[quantizer]; ++k) {
          const uint32_t frequency = tables[i].symbols[simd::SymbolOf(k) | q] & 0xffff;
          EXPECT_GE(frequency, 1);
          sum += frequency;
          second_moment += frequency / 4096.0 * std::pow(simd::PointOf(k, quantizer), 2);
        }
        EXPECT_EQ(sum, 4096);
        const double deviation = std::exp2((static_cast<double>(i) - 12) / 4);
        if (deviation >= 2) {
          EXPECT_NEAR(std::sqrt(second_moment) / deviation, 1, 0.07);
        }
        for (uint32_t slot = 0; slot < simd::kRansSlots; ++slot) {
          const uint32_t entry = tables[i].slots[slot][quantizer];
          const uint32_t symbol = tables[i].symbols[entry >> 24 | q];
          ASSERT_EQ((entry >> 12 & 0xfff) + 1, symbol & 0xffff);
          ASSERT_EQ((symbol >> 16) + (entry & 0xfff), slot);
        }
      }
    }
  }
}

}  // namespace
}  // namespace kvcompress
