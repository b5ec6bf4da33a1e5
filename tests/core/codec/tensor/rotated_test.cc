#include <gmock/gmock.h>

#include <array>
#include <cmath>
#include <cstring>
#include <random>

#include "absl/strings/str_format.h"
#include "core/base/half.h"
#include "core/simd/rotated_quant.h"
#include "tests/core/codec/chain_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT
using ::absl::StatusCode;
using ::testing::HasSubstr;

// All lengths of rows that models have, one that no power of two is near, and the limits.
constexpr size_t kRows[] = {16, 17, 64, 80, 96, 100, 112, 128, 192, 256, 576, 1023, 1024};
constexpr int kAllBits[] = {2, 3, 4};

std::string Spec(int bits) { return absl::StrFormat("rotated(bits=%d)", bits); }

// Normal deviates times `size`; those of channel `loud` times 30 more.
std::vector<std::byte> Gaussian(DType dtype, size_t rows, size_t row, double size, size_t loud = SIZE_MAX) {
  std::mt19937 random(7);
  std::normal_distribution<double> normal;
  std::vector<std::byte> values(rows * row * DTypeSize(dtype));
  for (size_t i = 0; i < rows * row; ++i) {
    const double x = size * normal(random) * (i % row == loud ? 30 : 1);
    StoreFromF32(dtype, static_cast<float>(x), values.data(), i);
  }
  return values;
}

std::vector<std::byte> Decoded(int bits, DType dtype, size_t row, ByteSpan values) {
  const TensorDesc tensor = MakeTensor("t", dtype, {values.size() / DTypeSize(dtype) / row, row});
  const CodecChain chain = MakeChain(Spec(bits), tensor);
  const auto payload = EncodeOneBlock(chain, tensor, values, nullptr);
  EXPECT_THAT(payload, IsOk());
  std::vector<std::byte> decoded(values.size());
  EXPECT_THAT(chain.DecodeBlock(tensor, *payload, decoded), IsOk());
  return decoded;
}

double SnrOf(DType dtype, ByteSpan values, ByteSpan decoded) {
  double signal = 0, noise = 0;
  for (size_t i = 0; i < values.size() / DTypeSize(dtype); ++i) {
    const double x = LoadAsF32(dtype, values.data(), i);
    const double e = x - LoadAsF32(dtype, decoded.data(), i);
    signal += x * x;
    noise += e * e;
  }
  return 10 * std::log10(signal / noise);
}

double PromisedSnr(int bits) { return bits == 4 ? 20.1 : bits == 3 ? 14.5 : 9.2; }

TEST(RotatedTest, KeepsWhatLloydsLevelsOfAGaussianKeepWhicheverChannelIsLoud) {
  for (const int bits : kAllBits) {
    for (const size_t row : kRows) {
      for (const size_t loud : {SIZE_MAX, size_t{0}, row / 2, row - 1}) {
        const auto values = Gaussian(DType::kF16, 400, row, 1, loud);
        // The coefficients of a row with one loud channel look less like a Gaussian source, of a short one the least.
        const double less = loud > row ? 0 : row < 64 ? 1.2 : 0.4;
        EXPECT_GE(SnrOf(DType::kF16, values, Decoded(bits, DType::kF16, row, values)), PromisedSnr(bits) - less)
            << bits << " bits, row " << row << ", loud " << static_cast<int64_t>(loud);
      }
    }
  }
}

TEST(RotatedTest, KeepsValuesOfEverySize) {
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    for (const int exponent : {-119, -100, -70, -33, -20, 0, 16, 31, 40, 100, 115}) {
      const auto values = Gaussian(dtype, 50, 96, std::ldexp(1, exponent));
      EXPECT_GE(SnrOf(dtype, values, Decoded(4, dtype, 96, values)), PromisedSnr(4)) << DTypeName(dtype) << exponent;
    }
  }
  const auto values = Gaussian(DType::kF16, 50, 96, 0x1p-12);
  EXPECT_GE(SnrOf(DType::kF16, values, Decoded(4, DType::kF16, 96, values)), PromisedSnr(4));
}

TEST(RotatedTest, TheLargestValuesComeBackFinite) {
  for (const DType dtype : kKernelDTypes) {
    const float largest = std::min(MaxFinite(dtype), simd::kMaxRotatable);
    for (const int bits : kAllBits) {
      for (const size_t row : kRows) {
        for (const bool alone : {true, false}) {
          std::vector<std::byte> values(row * DTypeSize(dtype));
          for (size_t i = 0; i < row; ++i) StoreFromF32(dtype, alone && i > 0 ? 0 : largest, values.data(), i);
          const auto decoded = Decoded(bits, dtype, row, values);
          for (size_t i = 0; i < row; ++i) ASSERT_LE(std::abs(LoadAsF32(dtype, decoded.data(), i)), MaxFinite(dtype));
          EXPECT_GE(SnrOf(dtype, values, decoded), 4) << DTypeName(dtype) << " " << bits << " " << row;
        }
      }
    }
  }
}

TEST(RotatedTest, RowsOfZerosComeBackAsZeros) {
  for (const DType dtype : kKernelDTypes) {
    auto values = Gaussian(dtype, 5, 80, 1);
    const size_t bytes = 80 * DTypeSize(dtype);
    std::fill_n(values.begin() + static_cast<ptrdiff_t>(2 * bytes), bytes, std::byte{0});
    const auto decoded = Decoded(4, dtype, 80, values);
    EXPECT_EQ(std::memcmp(decoded.data() + 2 * bytes, values.data() + 2 * bytes, bytes), 0);
  }
}

TEST(RotatedTest, ARowDependsOnNoOther) {
  constexpr DType kType = DType::kBF16;
  const auto values = Gaussian(kType, 9, 112, 3);
  const auto decoded = Decoded(3, kType, 112, values);
  const size_t bytes = 112 * DTypeSize(kType);
  for (size_t r = 0; r < 9; ++r) {
    const auto own = Decoded(3, kType, 112, ByteSpan(values).subspan(r * bytes, bytes));
    EXPECT_EQ(std::memcmp(own.data(), decoded.data() + r * bytes, bytes), 0) << r;
  }
}

TEST(RotatedTest, BlocksHaveWholeRows) {
  const auto block = [](std::vector<uint64_t> shape) {
    const TensorDesc tensor = MakeTensor("t", DType::kF16, std::move(shape));
    return MakeChain("rotated", tensor).BlockElements(tensor);
  };
  EXPECT_EQ(block({1000, 64}), kDefaultBlockElements);
  EXPECT_EQ(block({1000, 96}), 341u * 384);
  EXPECT_EQ(block({1000, 1023}), 128u * 1023);
  EXPECT_EQ(block({1000, 1025}), kDefaultBlockElements);  // its rows have 128 values
  EXPECT_EQ(block({1000, 15}), kDefaultBlockElements);
  EXPECT_EQ(block({}), kDefaultBlockElements);
}

TEST(RotatedTest, TakesFourBitsAndAScaleARow) {
  const TensorDesc tensor = MakeTensor("t", DType::kF16, {100, 128});
  const auto payload =
      EncodeOneBlock(MakeChain("rotated", tensor), tensor, Gaussian(DType::kF16, 100, 128, 1), nullptr);
  ASSERT_THAT(payload, IsOk());
  EXPECT_EQ(payload->size(), 8u + 100 * (2 + 64));
}

TEST(RotatedTest, RefusesWhatItCannotHold) {
  const TensorDesc tensor = MakeTensor("t", DType::kF32, {2, 64});
  const CodecChain chain = MakeChain("rotated", tensor);
  for (const float bad : {NAN, INFINITY, -INFINITY, 0x1.000002p120f, -0x1p127f}) {
    auto values = Gaussian(DType::kF32, 2, 64, 1);
    StoreFromF32(DType::kF32, bad, values.data(), 77);
    EXPECT_THAT(EncodeOneBlock(chain, tensor, values, nullptr),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr("value 77 is ")));
  }
}

TEST(RotatedTest, AnyCodesDecodeToFiniteValuesAndBadScalesAreRefused) {
  const TensorDesc tensor = MakeTensor("t", DType::kF16, {2, 96});
  const CodecChain chain = MakeChain("rotated", tensor);
  auto payload = EncodeOneBlock(chain, tensor, Gaussian(DType::kF16, 2, 96, 1), nullptr);
  ASSERT_THAT(payload, IsOk());
  std::vector<std::byte> decoded(2 * 96 * 2);
  for (const int code : {0x00, 0x07, 0x70, 0x77, 0x88, 0xf0, 0xff}) {
    std::fill(payload->begin() + 12, payload->end(), static_cast<std::byte>(code));
    for (const int scale : {0x0000, 0x0001, 0x7bff, 0x8000, 0x8001, 0xff7f}) {
      StoreLE(static_cast<uint16_t>(scale), payload->data() + 8);
      ASSERT_THAT(chain.DecodeBlock(tensor, *payload, decoded), IsOk());
      for (size_t i = 0; i < 192; ++i) ASSERT_TRUE(std::isfinite(LoadAsF32(DType::kF16, decoded.data(), i)));
    }
    for (const int scale : {0x7c00, 0x7e00, 0x7fff, 0xff80, 0xffff}) {
      StoreLE(static_cast<uint16_t>(scale), payload->data() + 8);
      EXPECT_THAT(chain.DecodeBlock(tensor, *payload, decoded), StatusIs(StatusCode::kDataLoss, HasSubstr("scale")));
    }
  }
}

TEST(RotatedTest, TheFirstTokensOfEachSequenceKeepEightBits) {
  // Blocks begin within a sequence, and end within one.
  const TensorDesc tensor = MakeTensor("layer_0_key", DType::kF16, {2, 3, 10, 64});
  const CodecChain chain = MakeChain("rotated(bits=2,sinks=3,start=1)", tensor);
  const auto values = Gaussian(DType::kF16, 60, 64, 1);
  for (const uint64_t first : {0, 7, 11, 35}) {
    const size_t rows = std::min<size_t>(25, 60 - first);
    const ByteSpan own = ByteSpan(values).subspan(first * 128, rows * 128);
    std::vector<std::byte> payload(chain.MaxPayloadBytes(tensor, rows * 64)), decoded(own.size());
    ErrorSums sums, wanted;
    TokenSums tokens;
    const auto size = chain.EncodeBlock({tensor, first * 64, rows * 64, own}, {}, payload, &sums, &tokens);
    ASSERT_THAT(size, IsOk());
    ASSERT_THAT(chain.DecodeBlock(tensor, ByteSpan(payload).first(*size), decoded), IsOk());
    simd::MeasureErrors(tensor.dtype, own.data(), decoded.data(), rows * 64, wanted);
    EXPECT_NEAR(sums.sum_error_squares, wanted.sum_error_squares, 1e-5 * wanted.sum_error_squares);
    size_t sinks = 0;
    for (size_t r = 0; r < rows; ++r) {
      const bool is_sink = (first + r) % 10 < 2;
      sinks += is_sink ? 1 : 0;
      const double snr = SnrOf(DType::kF16, own.subspan(r * 128, 128), ByteSpan(decoded).subspan(r * 128, 128));
      EXPECT_TRUE(is_sink ? snr > 35 : snr < 15) << first << " row " << r << ": " << snr;
    }
    EXPECT_EQ(*size, 20 + (rows - sinks) * (2 + 16) + 24 + sinks * (2 + 64));
  }
}

TEST(RotatedTest, TokensWithSeveralHeadsAreSinksWithAllOfThem) {
  TensorDesc tensor = MakeTensor("t", DType::kBF16, {8, 2, 80});
  tensor.axes = {AxisRole::kSeq, AxisRole::kHeads, AxisRole::kHeadDim};
  const auto values = Gaussian(DType::kBF16, 16, 80, 1);
  const CodecChain chain = MakeChain("rotated(bits=2,sinks=2)", tensor);
  const auto payload = EncodeOneBlock(chain, tensor, values, nullptr);
  ASSERT_THAT(payload, IsOk());
  std::vector<std::byte> decoded(values.size());
  ASSERT_THAT(chain.DecodeBlock(tensor, *payload, decoded), IsOk());
  for (size_t r = 0; r < 16; ++r) {
    const double snr =
        SnrOf(DType::kBF16, ByteSpan(values).subspan(r * 160, 160), ByteSpan(decoded).subspan(r * 160, 160));
    EXPECT_TRUE(r < 4 ? snr > 35 : snr < 15) << r;
  }
}

TEST(RotatedTest, WithoutTokensThereAreNoSinks) {
  const TensorDesc tensor = MakeTensor("t", DType::kF16, {8, 80});
  const auto values = Gaussian(DType::kF16, 8, 80, 1);
  const auto payload = EncodeOneBlock(MakeChain("rotated(sinks=2)", tensor), tensor, values, nullptr);
  ASSERT_THAT(payload, IsOk());
  EXPECT_EQ(payload->size(), 20u + 8 * (2 + 40) + 24);
}

TEST(RotatedTest, RefusesSinksThatCannotBe) {
  const TensorDesc tensor = MakeTensor("layer_0_key", DType::kF16, {1, 1, 8, 64});
  const CodecChain chain = MakeChain("rotated(sinks=2)", tensor);
  auto payload = EncodeOneBlock(chain, tensor, Gaussian(DType::kF16, 8, 64, 1), nullptr);
  ASSERT_THAT(payload, IsOk());
  std::vector<std::byte> decoded(8 * 64 * 2);
  const size_t place = 20 + 6 * (2 + 32);
  const auto with = [&](uint64_t period, uint64_t sinks, uint64_t first) {
    StoreLE(period, payload->data() + place);
    StoreLE(sinks, payload->data() + place + 8);
    StoreLE(first, payload->data() + place + 16);
    return chain.DecodeBlock(tensor, *payload, decoded);
  };
  EXPECT_THAT(with(8, 2, 0), IsOk());
  EXPECT_THAT(with(6, 2, 2), IsOk());
  for (const auto& [period, sinks, first] : std::vector<std::array<uint64_t, 3>>{{8, 9, 0},
                                                                                 {8, 2, 8},
                                                                                 {0, 0, 1},
                                                                                 {0, 1, 0},
                                                                                 {(uint64_t{1} << 48) + 1, 2, 0},
                                                                                 {8, 3, 0},
                                                                                 {8, 1, 0},
                                                                                 {0, 0, 0},

                                                                                 {2, 2, 0},
                                                                                 {UINT64_MAX, 2, 0}}) {
    EXPECT_THAT(with(period, sinks, first), StatusIs(StatusCode::kDataLoss, ::testing::_))
        << period << " " << sinks << " " << first;
  }
}

// Keys [2, 3, tokens, 64] as attention sees them: turned, with constants in two of their channels.
std::vector<std::byte> Keys(DType dtype, size_t tokens, double theta, uint64_t start) {
  std::mt19937 random(9);
  std::normal_distribution<double> normal;
  std::vector<std::byte> values(6 * tokens * 64 * DTypeSize(dtype));
  for (size_t r = 0; r < 6 * tokens; ++r) {
    double key[64];
    for (size_t i = 0; i < 64; ++i) key[i] = normal(random) + (i == 3 ? 40 : i == 50 ? -25 : 0);
    for (size_t i = 0; i < 32; ++i) {
      const double angle = static_cast<double>(start + r % tokens) * std::pow(theta, -static_cast<double>(i) / 32);
      const double a = key[i], b = key[i + 32];
      key[i] = a * std::cos(angle) - b * std::sin(angle);
      key[i + 32] = b * std::cos(angle) + a * std::sin(angle);
    }
    for (size_t i = 0; i < 64; ++i) StoreFromF32(dtype, static_cast<float>(key[i]), values.data(), r * 64 + i);
  }
  return values;
}

// In dB of what changes from token to token, whose variance is 1.
double NoiseOf(std::string_view spec, DType dtype, uint64_t start) {
  constexpr size_t kTokens = 200;
  const TensorDesc tensor = MakeTensor("layer_0_key", dtype, {2, 3, kTokens, 64});
  const auto values = Keys(dtype, kTokens, 10000, start);
  const CodecChain chain = MakeChain(spec, tensor);
  const auto payload = EncodeOneBlock(chain, tensor, values, nullptr);
  EXPECT_THAT(payload, IsOk());
  std::vector<std::byte> decoded(values.size());
  EXPECT_THAT(chain.DecodeBlock(tensor, *payload, decoded), IsOk());
  double noise = 0;
  for (size_t i = 0; i < 6 * kTokens * 64; ++i) {
    const double e = LoadAsF32(dtype, values.data(), i) - LoadAsF32(dtype, decoded.data(), i);
    noise += e * e;
  }
  return 10 * std::log10(noise / (6 * kTokens * 64));
}

TEST(RotatedTest, ConstantsOfChannelsCostNothingWhereTheirRotationIsKnown) {
  for (const DType dtype : kKernelDTypes) {
    EXPECT_LT(NoiseOf("rotated(mean=channel,theta=10000)", dtype, 0), -19.5) << DTypeName(dtype);
    EXPECT_LT(NoiseOf("rotated(mean=channel,theta=10000,start=5000)", dtype, 5000), -19.5) << DTypeName(dtype);
    // Another base is no fault, but brings nothing.
    EXPECT_GT(NoiseOf("rotated(mean=channel,theta=70)", dtype, 0), -15) << DTypeName(dtype);
    EXPECT_GT(NoiseOf("rotated(mean=channel)", dtype, 0), -15) << DTypeName(dtype);
    EXPECT_GT(NoiseOf("rotated", dtype, 0), -8) << DTypeName(dtype);
  }
}

TEST(RotatedTest, TellsWhatUndoingTheRotationBrought) {
  constexpr size_t kTokens = 100;
  const TensorDesc tensor = MakeTensor("layer_0_key", DType::kF32, {1, 1, kTokens, 64});
  std::vector<float> rows(kTokens * 64);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i * 7919 % 101) * 0.01f + (i % 2 == 0 ? 5 : 2);
  simd::RotaryTable table;
  table.Make({.theta = 10000}, 64, 0, kTokens);
  simd::TurnRows(table, 0, simd::RotaryPairs::kHalf, simd::RotaryTurn::kForward, rows.data(), kTokens, 64);
  const auto gain = [&](const char* spec) {
    ErrorSums sums;
    const CodecChain chain = MakeChain(spec, tensor);
    std::vector<std::byte> payload(chain.MaxPayloadBytes(tensor, rows.size()));
    EXPECT_THAT(chain.EncodeBlock({tensor, 0, rows.size(), std::as_bytes(std::span(rows))}, {}, payload, &sums),
                IsOk());
    return sums.rotary;
  };
  const simd::RotaryGain right = gain("rotated(mean=channel,theta=10000)");
  EXPECT_EQ(right.turned, rows.size());
  EXPECT_GT(right.bits, 1.0 * static_cast<double>(rows.size()));
  EXPECT_EQ(gain("rotated(mean=channel,theta=3)"), simd::RotaryGain{.values = rows.size()});
  EXPECT_EQ(gain("rotated(mean=channel)"), simd::RotaryGain{});
}

TEST(RotatedTest, BlocksWithMeansBeginAndEndAnywhereInASequence) {
  TensorDesc tensor = MakeTensor("t", DType::kF16, {2, 10, 3, 32});
  tensor.axes = {AxisRole::kBatch, AxisRole::kSeq, AxisRole::kHeads, AxisRole::kHeadDim};
  const auto values = Gaussian(DType::kF16, 60, 32, 1);
  for (const char* spec : {"rotated(mean=channel)", "rotated(sinks=2,mean=channel,theta=10000,rotary_dims=16)"}) {
    const CodecChain chain = MakeChain(spec, tensor);
    for (const uint64_t first : {0, 1, 7, 28, 31}) {
      for (const size_t rows : {1, 2, 4, 29}) {
        const ByteSpan own = ByteSpan(values).subspan(first * 64, rows * 64);
        std::vector<std::byte> payload(chain.MaxPayloadBytes(tensor, rows * 32)), decoded(own.size());
        const auto size = chain.EncodeBlock({tensor, first * 32, rows * 32, own}, {}, payload, nullptr);
        ASSERT_THAT(size, IsOk());
        ASSERT_THAT(chain.DecodeBlock(tensor, ByteSpan(payload).first(*size), decoded), IsOk());
        EXPECT_GT(SnrOf(DType::kF16, own, decoded), 18) << spec << " " << first << " " << rows;
      }
    }
  }
}

TEST(RotatedTest, RefusesMeansThatCannotBe) {
  const TensorDesc tensor = MakeTensor("layer_0_key", DType::kF16, {1, 1, 8, 64});
  const CodecChain chain = MakeChain("rotated(mean=channel,theta=10000)", tensor);
  const auto good = EncodeOneBlock(chain, tensor, Gaussian(DType::kF16, 8, 64, 1), nullptr);
  ASSERT_THAT(good, IsOk());
  const size_t means = 12 + 8 * (2 + 32);  // after them S, K, f, h, the flag and the means
  const auto with = [&](size_t at, auto value) {
    auto payload = *good;
    StoreLE(value, payload.data() + means + at);
    std::vector<std::byte> decoded(8 * 64 * 2);
    return chain.DecodeBlock(tensor, payload, decoded);
  };
  EXPECT_THAT(with(0, uint64_t{8}), IsOk());
  EXPECT_THAT(with(16, uint64_t{1}), StatusIs(StatusCode::kDataLoss, HasSubstr("means")));  // two runs
  EXPECT_THAT(with(16, uint64_t{8}), StatusIs(StatusCode::kDataLoss, HasSubstr("place")));
  EXPECT_THAT(with(24, uint64_t{0}), StatusIs(StatusCode::kDataLoss, HasSubstr("means")));
  EXPECT_THAT(with(24, uint64_t{2}), StatusIs(StatusCode::kDataLoss, HasSubstr("means")));
  EXPECT_THAT(with(24, uint64_t{65537}), StatusIs(StatusCode::kDataLoss, HasSubstr("means")));
  EXPECT_THAT(with(24, UINT64_MAX), StatusIs(StatusCode::kDataLoss, HasSubstr("means")));
  EXPECT_THAT(with(32, uint8_t{2}), StatusIs(StatusCode::kDataLoss, HasSubstr("means")));
  EXPECT_THAT(with(33, uint16_t{0x7c00}), StatusIs(StatusCode::kDataLoss, HasSubstr("mean")));
  EXPECT_THAT(ChainSpec::Parse("rotated(theta=10000)").status(),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("mean=channel")));
  EXPECT_THAT(ChainSpec::Parse("rotated(mean=channel,theta=0.5)").status(),
              StatusIs(StatusCode::kInvalidArgument, ::testing::_));
}

}  // namespace
}  // namespace kvcompress
