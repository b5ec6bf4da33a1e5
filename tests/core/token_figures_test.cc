// The figures about tokens, whichever way a tensor goes.
#include "tests/testing/token_figures.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "core/base/half.h"
#include "core/codec/registry.h"
#include "core/compress_stream.h"
#include "core/quality/quality.h"
#include "core/simd/token_sums.h"
#include "core/tensor_compressor.h"
#include "core/tensor_decompressor.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

using Bytes = std::vector<std::byte>;

struct LastReport final : CompressOutput {
  void OnFrame(Slice) override {}
  void OnTensor(const TensorReport& done) override { report = done; }
  void OnError(const absl::Status& error) override { ADD_FAILURE() << error; }

  TensorReport report;
};

struct Shaped {
  std::vector<uint64_t> shape;
  std::vector<AxisRole> axes;
};

TensorDesc TensorOf(const Shaped& shaped, DType dtype) {
  return {.name = "layer_0_key", .dtype = dtype, .shape = shaped.shape, .axes = shaped.axes};
}

// Layouts of which sequences lie in a block, end with it, and go over many; blocks begin and end within a token.
std::vector<Shaped> Layouts() {
  using enum AxisRole;
  return {{{1, 3, 1000, 64}, {kBatch, kHeads, kSeq, kHeadDim}},
          {{1, 2, 1001, 80}, {kBatch, kHeads, kSeq, kHeadDim}},
          {{1, 150, 8, 128}, {kBatch, kSeq, kHeads, kHeadDim}},
          {{20, 16, 8, 64}, {kOther, kSeq, kHeads, kHeadDim}},
          {{1, 4, 64, 600}, {kBatch, kHeads, kHeadDim, kSeq}},
          {{20, 70, 96}, {kSeq, kLayer, kHeadDim}},
          {{2, 70'000, 1}, {kHeads, kSeq, kHeadDim}},
          {{140'000, 1}, {kSeq, kHeadDim}},
          {{5, 1, 64}, {kHeads, kSeq, kHeadDim}},
          {{3, TokenLayout::kMaxChannels}, {kSeq, kHeadDim}},
          {{1, 2, 2048, 64}, {kBatch, kHeads, kSeq, kHeadDim}}};
}

ErrorSums SpanSums(const TensorDesc& tensor, std::string_view codec, const Bytes& values, Bytes& decoded) {
  const auto compressor = TensorCompressor::Create(tensor, codec);
  EXPECT_THAT(compressor, IsOk());
  Bytes frame(compressor->max_frame_bytes());
  ErrorSums sums;
  const auto size = compressor->Compress(values, frame, &sums);
  EXPECT_THAT(size, IsOk());
  frame.resize(size.value_or(0));
  decoded.resize(values.size());
  EXPECT_THAT(TensorDecompressor().Decompress(frame, decoded), IsOk());
  return sums;
}

double Decibels(const ErrorSums& sums) { return 10 * std::log10(sums.token_deviations / sums.token_error_deviations); }

// Sums of errors do not come of deviations from the first token's error, which may be the only large one.
TEST(TokenFiguresTest, TheErrorOfOneTokenIsMeasuredAsItIs) {
  const TensorDesc tensor =
      TensorOf({{1, 1, 64, 64}, {AxisRole::kBatch, AxisRole::kHeads, AxisRole::kSeq, AxisRole::kHeadDim}}, DType::kF32);
  std::vector<float> values(64 * 64);
  for (size_t i = 0; i < values.size(); ++i) values[i] = 100 + 100 * static_cast<float>(i % 64) / 64;
  std::fill_n(values.begin(), 64, 1.9532051f);
  Bytes bytes(values.size() * sizeof(float)), decoded;
  std::memcpy(bytes.data(), values.data(), bytes.size());
  const ErrorSums sums = SpanSums(tensor, "sparse(ratio=0.015625)|raw", bytes, decoded);
  double error_squares = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double error = values[i] - static_cast<double>(LoadAsF32(DType::kF32, decoded.data(), i));
    error_squares += error * error;
  }
  EXPECT_GT(error_squares, 0);
  EXPECT_NEAR(sums.sum_error_squares, error_squares, 1e-6 * error_squares);
}

// Whichever codec a block goes through and whatever its values are.
TEST(TokenFiguresTest, ErrorsOfEveryPathAreThoseOfBinary64) {
  const Shaped shaped{{1, 2, 512, 64}, {AxisRole::kBatch, AxisRole::kHeads, AxisRole::kSeq, AxisRole::kHeadDim}};
  constexpr size_t kCount = size_t{2} * 512 * 64;
  using Change = float (*)(float x, size_t token, size_t channel);
  const Change changes[] = {
      [](float x, size_t, size_t) { return x; },
      [](float x, size_t token, size_t) { return token == 0 ? 300 * x : x; },
      [](float x, size_t token, size_t channel) { return token + channel == 0 ? 6e4f : x / 1024; },
      [](float x, size_t, size_t channel) { return (channel % 2 == 0 ? 100.0f : -100.0f) + x / 64; },
      [](float x, size_t token, size_t channel) {
        return std::ldexp(x, static_cast<int>((token + channel) % 24) - 12);
      },
  };
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
    const TensorDesc tensor = TensorOf(shaped, dtype);
    for (size_t k = 0; k < std::size(changes); ++k) {
      Bytes values = MakeValues(dtype, kCount, Distribution::kGaussian), decoded;
      for (size_t i = 0; i < kCount; ++i) {
        StoreFromF32(dtype, changes[k](LoadAsF32(dtype, values.data(), i), i / 64 % 512, i % 64), values.data(), i);
      }
      for (const char* codec :
           {"int4", "int8|zstd", "rotated", "rotated(mean=channel)", "transform(step=0.25)", "quant(bits=4)",
            "clip_sigma(sigma=3)|int4", "clamp|int4", "sparse(ratio=0.5)|int4", "sparse(ratio=0.01)|raw"}) {
        SCOPED_TRACE(::testing::Message() << DTypeName(dtype) << ' ' << codec << ", change " << k);
        const ErrorSums got = SpanSums(tensor, codec, values, decoded);
        ErrorSums want;
        simd::scalar::MeasureErrors(dtype, values.data(), decoded.data(), kCount, want);
        EXPECT_EQ(got.count, want.count);
        EXPECT_NEAR(got.sum_error_squares, want.sum_error_squares, 22 * 0x1p-24 * want.sum_error_squares);
        EXPECT_NEAR(got.max_abs_error, want.max_abs_error, 0x1p-24 * want.max_abs_error);
        EXPECT_NEAR(got.sum_abs_error, want.sum_abs_error, 4e-6 * want.sum_abs_error);
        EXPECT_NEAR(got.sum_squares, want.sum_squares, 1e-4 * want.sum_squares);
        EXPECT_NEAR(got.sum_deviations, want.sum_deviations, 1e-4 * want.sum_deviations);
      }
    }
  }
}

// Products of a value and its error that binary32 does not hold, in columns of which no square tells.
TEST(TokenFiguresTest, ProductsOfEveryMagnitudeAreMeasured) {
  const TensorDesc tensor = TensorOf({{19, 1}, {AxisRole::kSeq, AxisRole::kHeadDim}}, DType::kF32);
  for (const float scale : {1e24f, 1e12f, 1.0f, 1e-14f, 1e-30f}) {
    Bytes values(19 * sizeof(float));
    for (size_t i = 0; i < 19; ++i) {
      StoreFromF32(DType::kF32, scale * (1.0f + 0.37f * static_cast<float>(i * i % 19)), values.data(), i);
    }
    Bytes decoded;
    const ErrorSums sums = SpanSums(tensor, "int4(group=64)", values, decoded);
    double cross = 0;
    for (size_t i = 0; i < 19; ++i) {
      const double x = LoadAsF32(DType::kF32, values.data(), i);
      cross += x * (x - static_cast<double>(LoadAsF32(DType::kF32, decoded.data(), i)));
    }
    EXPECT_NEAR(sums.sum_cross, cross, 1e-5 * sums.sum_squares) << scale;
    EXPECT_GT(QualityOf(sums).cosine_similarity, 0.99) << scale;
  }
}

TEST(TokenFiguresTest, EveryCodecAndLayoutHasThoseOfTheDefinition) {
  for (const CodecRow* row : AllCodecs()) {
    const std::string codec(row->examples.front());
    for (const Shaped& shaped : Layouts()) {
      const TensorDesc tensor = TensorOf(shaped, DType::kBF16);
      if (!ChainSpec::Parse(codec)->Resolve({}, tensor).ok()) continue;
      SCOPED_TRACE(codec + ", " + DescribeTensor(tensor));
      const size_t count = *NumElements(tensor.shape);
      const Bytes values = KeyLikeValues(DType::kBF16, count, tensor.shape.back(), 20);
      Bytes decoded;
      const ErrorSums got = SpanSums(tensor, codec, values, decoded);
      const ErrorSums want = TokenFigures(TokenLayoutOf(tensor), DType::kBF16, values, decoded);
      EXPECT_EQ(got.token_count, count);
      EXPECT_NEAR(got.token_deviations, want.token_deviations, 1e-5 * want.token_deviations);
      EXPECT_NEAR(got.token_error_deviations, want.token_error_deviations, 1e-5 * want.token_error_deviations);
      EXPECT_NEAR(got.max_channel_constant, want.max_channel_constant, 1e-4 * want.max_channel_constant);
    }
  }
}

TEST(TokenFiguresTest, ThreadsAndPiecesChangeNoBit) {
  for (const char* codec : {"int4", "int3(group=128)", "quant(bits=4,per=channel)", "raw", "sparse(ratio=0.5)|int4"}) {
    for (const Shaped& shaped : Layouts()) {
      const TensorDesc tensor = TensorOf(shaped, DType::kF16);
      SCOPED_TRACE(std::string(codec) + ", " + DescribeTensor(tensor));
      const Bytes values = KeyLikeValues(DType::kF16, *NumElements(tensor.shape), tensor.shape.back(), 20);
      Bytes decoded;
      const ErrorSums want = SpanSums(tensor, codec, values, decoded);
      for (const size_t threads : {1, 5}) {
        ThreadPool pool(threads);
        LastReport whole;
        CompressStream pulled(pool, {}, whole);
        const MemorySource source{ByteSpan(values)};
        ASSERT_THAT(pulled.Compress(tensor, codec, source, 4), IsOk());
        pulled.WaitBelow(1);
        EXPECT_EQ(std::memcmp(&whole.report.sums, &want, sizeof(want)), 0);
        const size_t piece = threads == 1 ? 40'001 : 7'777;
        LastReport cut;
        CompressStream pushed(pool, {}, cut);
        ASSERT_THAT(pushed.Begin(tensor, codec), IsOk());
        for (size_t at = 0; at < values.size(); at += piece) {
          Slice slice{ByteSpan(values).subspan(at, std::min(piece, values.size() - at)), nullptr};
          while (!slice.bytes.empty()) ASSERT_THAT(pushed.AppendPart(slice), IsOk());
        }
        pushed.WaitBelow(1);
        EXPECT_EQ(std::memcmp(&cut.report.sums, &want, sizeof(want)), 0);
      }
    }
  }
}

// What int4 keeps of keys whose channels have large constants is nothing, however high snr_db is.
TEST(TokenFiguresTest, ConstantsOfChannelsAreNoSignal) {
  const TensorDesc tensor = MakeTensor("layer_0_key", DType::kBF16, {1, 2, 2048, 128});
  const Bytes values = KeyLikeValues(DType::kBF16, 2 * 2048 * 128, 128, 350);
  for (const char* codec : {"int4", "int8", "quant(bits=4,per=channel,symmetric=false)", "bounded(min_snr=30)"}) {
    SCOPED_TRACE(codec);
    Bytes decoded;
    const ErrorSums got = SpanSums(tensor, codec, values, decoded);
    const ErrorSums want = TokenFigures(TokenLayoutOf(tensor), DType::kBF16, values, decoded);
    EXPECT_NEAR(Decibels(got), Decibels(want), 0.001);
    const Quality quality = QualityOf(got);
    ASSERT_TRUE(quality.token_snr_db.has_value());
    EXPECT_NEAR(*quality.token_snr_db, Decibels(want), 0.001);
    EXPECT_GT(got.max_channel_constant, 100);
    if (std::string_view(codec) == "int4") {
      EXPECT_GT(*quality.snr_db, 20);
      EXPECT_LT(*quality.token_snr_db, 3);
    }
  }
}

TEST(TokenFiguresTest, TensorsWithoutTokensHaveNone) {
  for (const Shaped& shaped :
       {Shaped{{100'000}, {AxisRole::kOther}}, Shaped{{8, 64}, {AxisRole::kSeq, AxisRole::kHeads}},
        Shaped{{0, 64}, {AxisRole::kSeq, AxisRole::kHeadDim}},
        Shaped{{3, TokenLayout::kMaxChannels + 1}, {AxisRole::kSeq, AxisRole::kHeadDim}}}) {
    const TensorDesc tensor = TensorOf(shaped, DType::kF16);
    const Bytes values = MakeValues(DType::kF16, *NumElements(tensor.shape), Distribution::kGaussian);
    Bytes decoded;
    for (const char* codec : {"int4", "quant(bits=8)"}) {
      const ErrorSums sums = SpanSums(tensor, codec, values, decoded);
      EXPECT_EQ(sums.token_count, 0u);
      EXPECT_EQ(sums.token_deviations, 0);
      EXPECT_EQ(sums.max_channel_constant, 0);
      EXPECT_FALSE(QualityOf(sums).token_snr_db.has_value());
    }
  }
}

}  // namespace
}  // namespace kvcompress
