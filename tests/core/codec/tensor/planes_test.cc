#include <gmock/gmock.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/safetensors/safetensors.h"
#include "tests/core/codec/chain_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT
using ::testing::HasSubstr;

constexpr const char* kFixed[] = {"planes(split=bytes,delta=none)",  "planes(split=fields,delta=none)",
                                  "planes(split=bytes,delta=xor)",   "planes(split=fields,delta=xor)",
                                  "planes(split=bytes,delta=token)", "planes(split=fields,delta=token)"};

std::vector<std::byte> Encode(std::string_view spec, const TensorDesc& tensor, ByteSpan values) {
  const auto payload = EncodeOneBlock(MakeChain(spec), tensor, values, nullptr);
  EXPECT_THAT(payload, IsOk());
  return *payload;
}

// Of a payload without byte codecs: the mode stream after the table of 5 sizes.
struct Mode {
  int split;
  int delta;
  uint32_t distance;
};
constexpr size_t kTable = 20;
Mode ModeOf(const std::vector<std::byte>& payload) {
  return {std::to_integer<int>(payload[kTable]), std::to_integer<int>(payload[kTable + 1]),
          LoadLE<uint32_t>(payload.data() + kTable + 2)};
}

void ExpectRoundTrip(std::string_view spec, const TensorDesc& tensor, const std::vector<std::byte>& values) {
  SCOPED_TRACE(absl::StrFormat("%s %s", spec, DescribeTensor(tensor)));
  const auto payload = Encode(spec, tensor, values);
  std::vector<std::byte> decoded(values.size());
  ASSERT_THAT(MakeChain(spec).DecodeBlock(tensor, payload, decoded), IsOk());
  EXPECT_EQ(decoded, values);
}

TEST(PlanesTest, EveryPatternOf16BitsComesBack) {
  std::vector<std::byte> values(2 << 16);
  for (uint32_t i = 0; i < 1 << 16; ++i) {
    StoreLE(static_cast<uint16_t>(i * 40503u), values.data() + 2 * size_t{i});  // odd factor: each pattern once
  }
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    for (const char* spec : kFixed) ExpectRoundTrip(spec, MakeTensor("t", dtype, {1024, 64}), values);
  }
}

TEST(PlanesTest, AnyBitsComeBackAtAnyShape) {
  for (const DType dtype : kAllDTypes) {
    for (const size_t width : {1, 2, 15, 16, 31, 33, 64, 100}) {
      for (const size_t rows : {1, 2, 3, 17}) {
        const TensorDesc tensor = MakeTensor("t", dtype, {rows, width});
        const auto values = MakeBits(rows * width * DTypeSize(dtype), static_cast<uint32_t>(width));
        for (const char* spec : kFixed) ExpectRoundTrip(spec, tensor, values);
        ExpectRoundTrip("planes", tensor, values);
      }
    }
  }
}

TEST(PlanesTest, ExponentsAndMantissasStandApart) {
  // Two values of BF16 and of F32, of which the fields are rotated to exponent | mantissa, sign.
  std::vector<std::byte> values(4);
  StoreLE<uint16_t>(0xc049, values.data());      // 1 10000000 1001001
  StoreLE<uint16_t>(0x3f80, values.data() + 2);  // 0 01111111 0000000
  const auto payload = Encode(kFixed[1], MakeTensor("t", DType::kBF16, {2}), values);
  const std::vector<std::byte> want = {std::byte{0x80}, std::byte{0x7f}, std::byte{0x93}, std::byte{0x00}};
  EXPECT_EQ(std::vector<std::byte>(payload.begin() + kTable + 6, payload.end()), want);
}

TEST(PlanesTest, DeltaFollowsTheSequenceAxis) {
  // 64 channels whose values differ, and hardly change from token to token.
  std::vector<std::byte> values(2 * 64 * 512);
  const auto noise = MakeBits(64 * 2);
  for (size_t i = 0; i < 64 * 512; ++i) {
    const auto base = LoadLE<uint16_t>(noise.data() + 2 * (i % 64));
    StoreLE(static_cast<uint16_t>(base + i / 64), values.data() + 2 * i);
  }
  TensorDesc tensor = MakeTensor("layer_0_key", DType::kF16, {1, 2, 256, 64});
  Mode mode = ModeOf(Encode("planes", tensor, values));
  EXPECT_EQ(mode.delta, 1);
  EXPECT_EQ(mode.distance, 64u);
  // [seq, heads, head_dim], and a tensor without a sequence axis.
  tensor = {.name = "t",
            .dtype = DType::kF16,
            .shape = {512, 2, 32},
            .axes = {AxisRole::kSeq, AxisRole::kHeads, AxisRole::kHeadDim}};
  EXPECT_EQ(ModeOf(Encode("planes(delta=xor)", tensor, values)).distance, 64u);
  EXPECT_EQ(ModeOf(Encode("planes(delta=token)", MakeTensor("t", DType::kF16, {256, 128}), values)).distance, 128u);
  // Nothing lies a whole row behind anything.
  mode = ModeOf(Encode("planes(delta=token)", MakeTensor("t", DType::kF16, {32768}), values));
  EXPECT_EQ(mode.delta, 0);
  EXPECT_EQ(mode.distance, 0u);
}

TEST(PlanesTest, EachBlockChoosesForItself) {
  const auto gaussian = MakeValues(DType::kBF16, 20000, Distribution::kGaussian);
  EXPECT_EQ(ModeOf(Encode("planes", MakeTensor("t", DType::kBF16, {200, 100}), gaussian)).split, 1);
  EXPECT_EQ(ModeOf(Encode("planes", MakeTensor("t", DType::kBF16, {200, 100}), gaussian)).delta, 0);
  // Bytes that say the same in every way: the simplest.
  const std::vector<std::byte> zeros(40000);
  const Mode mode = ModeOf(Encode("planes", MakeTensor("t", DType::kBF16, {200, 100}), zeros));
  EXPECT_EQ(mode.split, 0);
  EXPECT_EQ(mode.delta, 0);
  // Noise that repeats from one token to the next: only a delta sees it.
  auto repeated = MakeBits(40000);
  for (size_t i = 200; i < repeated.size(); ++i) repeated[i] = repeated[i - 200];
  EXPECT_NE(ModeOf(Encode("planes", MakeTensor("t", DType::kBF16, {200, 100}), repeated)).delta, 0);
}

// What the choice costs against knowing: blocks of a real cache, keys and values, with a coder behind.
void ExpectNearlyTheBest(const std::string& name, DType dtype, const std::string& coder, double least_ratio) {
  std::ifstream file(KVC_SOURCE_DIR "/tests/data/" + name, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const auto header = safetensors::ReadHeader(MemorySource(AsBytes(text)));
  ASSERT_THAT(header, IsOk());
  ASSERT_FALSE(header->entries.empty());
  size_t of_choice = 0;
  std::vector<size_t> of_fixed(std::size(kFixed));
  size_t raw = 0;
  for (const safetensors::Entry& entry : header->entries) {
    const TensorDesc tensor = MakeTensor(entry.name, dtype, entry.shape);
    ASSERT_EQ(tensor.axes.at(2), AxisRole::kSeq);
    const ByteSpan values = AsBytes(text).subspan(header->data_start + entry.begin, entry.bytes());
    raw += values.size();
    const size_t choice = Encode(absl::StrCat("planes|", coder), tensor, values).size();
    of_choice += choice;
    size_t best = values.size();
    for (size_t i = 0; i < std::size(kFixed); ++i) {
      const size_t size = Encode(absl::StrCat(kFixed[i], "|", coder), tensor, values).size();
      of_fixed[i] += size;
      best = std::min(best, size);
    }
    EXPECT_LE(static_cast<double>(choice), 1.005 * static_cast<double>(best)) << entry.name;
  }
  const auto best = static_cast<double>(*std::min_element(of_fixed.begin(), of_fixed.end()));
  EXPECT_LE(static_cast<double>(of_choice), 1.001 * best);
  EXPECT_LE(static_cast<double>(of_choice), 1.001 * static_cast<double>(of_fixed[0]));  // plain bytes
  EXPECT_LT(static_cast<double>(of_choice), static_cast<double>(raw) / least_ratio);
}

// The choice reckons with a coder of single bytes, which rans is. zstd takes 0.8 % less of one of these keys by another
// way.
TEST(PlanesTest, TheChoiceIsNearlyTheBestOnARealCache) {
  ExpectNearlyTheBest("smollm2.256.bf16.safetensors", DType::kBF16, "rans", 1.45);
}

TEST(PlanesTest, TheChoiceIsNearlyTheBestForZstdOfF16) {
  ExpectNearlyTheBest("docs.256.f16.safetensors", DType::kF16, "zstd(level=1)", 1.15);
}

TEST(PlanesTest, WhatDoesNotShrinkHardlyGrows) {
  for (const DType dtype : kAllDTypes) {
    for (const size_t count : {1, 100, 5000, 1 << 17}) {
      const auto noise = MakeBits(count * DTypeSize(dtype));
      for (const char* spec : {"planes", "planes|zstd(level=1)", "planes(split=fields,delta=token)|zstd(level=-1)"}) {
        const auto payload = Encode(spec, MakeTensor("t", dtype, {count}), noise);
        EXPECT_LE(payload.size(), noise.size() + noise.size() / 1000 + 64) << spec << ' ' << count;
      }
    }
  }
}

TEST(PlanesTest, ModesThatNobodyWritesAreRefused) {
  const auto chain = MakeChain("planes(split=fields,delta=token)");
  const auto values = MakeBits(200);
  const TensorDesc tensor = MakeTensor("t", DType::kF16, {10, 10});
  const auto payload = Encode(chain.spec(), tensor, values);
  ASSERT_EQ(ModeOf(payload).distance, 10u);
  std::vector<std::byte> decoded(values.size());
  const auto decode = [&](uint8_t split, uint8_t delta, uint32_t distance) {
    auto changed = payload;
    changed[kTable] = static_cast<std::byte>(split);
    changed[kTable + 1] = static_cast<std::byte>(delta);
    StoreLE(distance, changed.data() + kTable + 2);
    return chain.DecodeBlock(tensor, changed, decoded);
  };
  EXPECT_THAT(decode(1, 1, 10), IsOk());
  EXPECT_THAT(decode(0, 2, 99), IsOk());
  EXPECT_THAT(decode(0, 0, 0), IsOk());
  const struct {
    uint8_t split, delta;
    uint32_t distance;
  } bad[] = {{2, 1, 10}, {255, 0, 0}, {1, 3, 10}, {1, 1, 0}, {0, 2, 0}, {1, 1, 100}, {1, 2, 0xffffffffu}, {1, 0, 10}};
  for (const auto& one : bad) {
    EXPECT_THAT(decode(one.split, one.delta, one.distance),
                StatusIs(absl::StatusCode::kDataLoss, HasSubstr("planes: mode")))
        << int{one.split} << ' ' << int{one.delta} << ' ' << one.distance;
  }
}

TEST(PlanesTest, SpecsAreCanonicalAndChecked) {
  EXPECT_EQ(ChainSpec::Parse("planes")->text(), "planes(split=auto,delta=auto)");
  EXPECT_EQ(ChainSpec::Parse("planes(delta=xor)")->text(), "planes(split=auto,delta=xor)");
  EXPECT_THAT(
      ChainSpec::Parse("planes(split=bits)"),
      StatusIs(absl::StatusCode::kInvalidArgument, "planes: split=bits is not one of auto, bytes, fields, coded"));
  EXPECT_THAT(ChainSpec::Parse("planes(delta=1)"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("delta=1 is not one of auto, none, token, xor")));
}

// The sums of a lossless chain are those of the error measured: none, over the values that are finite.
TEST(PlanesTest, SumsAreThoseOfNoError) {
  for (const DType dtype : kKernelDTypes) {
    auto values = MakeValues(dtype, 5000, Distribution::kOutliers);
    StoreFromF32(dtype, std::numeric_limits<float>::quiet_NaN(), values.data(), 77);
    StoreFromF32(dtype, std::numeric_limits<float>::infinity(), values.data(), 4999);
    ErrorSums want;
    const std::vector<std::byte> copy = values;
    simd::MeasureErrors(dtype, values.data(), copy.data(), 5000, want);
    for (const char* spec : {"planes", "raw", "planes|zstd(level=1)"}) {
      ErrorSums sums;
      ASSERT_THAT(EncodeOneBlock(MakeChain(spec), MakeTensor("t", dtype, {50, 100}), values, &sums), IsOk());
      EXPECT_EQ(sums.count, 4998u);
      EXPECT_EQ(sums.sum, want.sum);
      EXPECT_EQ(sums.sum_squares, want.sum_squares);
      EXPECT_EQ(sums.sum_error_squares, 0);
      EXPECT_EQ(sums.sum_abs_error, 0);
      EXPECT_EQ(sums.sum_cross, 0);
      EXPECT_EQ(sums.max_abs_error, 0);
    }
  }
}

}  // namespace
}  // namespace kvcompress
