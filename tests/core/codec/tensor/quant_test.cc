#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "absl/strings/str_format.h"
#include "core/codec/tensor/index_list.h"
#include "tests/core/codec/chain_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

constexpr size_t kHeadDim = 48;  // no power of two, and no multiple of a group

std::vector<float> Floats(DType dtype, ByteSpan values) {
  std::vector<float> floats(values.size() / DTypeSize(dtype));
  for (size_t i = 0; i < floats.size(); ++i) floats[i] = LoadAsF32(dtype, values.data(), i);
  return floats;
}

std::vector<std::byte> RoundTrip(std::string_view spec, const TensorDesc& tensor, ByteSpan values) {
  const auto chain = MakeChain(spec);
  const auto payload = EncodeOneBlock(chain, tensor, values, nullptr);
  EXPECT_THAT(payload, IsOk()) << spec;
  std::vector<std::byte> decoded(values.size(), std::byte{0xaa});
  if (payload.ok()) {
    EXPECT_THAT(chain.DecodeBlock(tensor, *payload, decoded), IsOk()) << spec;
  }
  return decoded;
}

// Which cell a value belongs to, by the words of docs/format.md.
size_t CellOf(std::string_view per, size_t group, size_t count, size_t i) {
  const size_t rows = (count + kHeadDim - 1) / kHeadDim;
  if (per == "block") return 0;
  if (per == "group") return i / group;
  if (per == "token" || rows < 16) return i / kHeadDim;
  const size_t stretches = std::max<size_t>(1, rows / group);
  return std::min(i / kHeadDim / group, stretches - 1) * kHeadDim + i % kHeadDim;
}

// The largest distance between a value and what it decodes to: half a step, where the scale is the least of its type
// that reaches the cell's range, and the roundings of the decoded value.
double HalfStep(DType dtype, int bits, bool symmetric, float min, float max) {
  const double levels = symmetric ? (1 << (bits - 1)) - 1 : (1 << bits) - 1;
  const double range = symmetric ? std::max(std::fabs(min), std::fabs(max)) : double{max} - double{min};
  const double coarseness = dtype == DType::kF16 ? 0x1p-10 : 0x1p-7;
  const double smallest = dtype == DType::kF16 ? 0x1p-24 : 0x1p-133;
  const double step = std::max(range / levels * (1 + coarseness), range / levels + smallest);
  const double magnitude = std::max(std::fabs(min), std::fabs(max));
  const double ulp = dtype == DType::kF16 ? 0x1p-10 : dtype == DType::kBF16 ? 0x1p-7 : 0x1p-23;
  return step / 2 + (magnitude + step) * (ulp / 2 + 0x1p-21) + (dtype == DType::kF16 ? 0x1p-25 : 0);
}

class QuantTest : public ::testing::TestWithParam<std::string_view> {};

TEST_P(QuantTest, EveryValueIsWithinHalfAStep) {
  const std::string_view per = GetParam();
  for (const DType dtype : kKernelDTypes) {
    for (const size_t count : {size_t{7}, 5 * kHeadDim + 3, 100 * kHeadDim + 11}) {
      for (const Distribution distribution : kAllDistributions) {
        const auto values = MakeValues(dtype, count, distribution, static_cast<uint32_t>(count));
        const std::vector<float> x = Floats(dtype, values);
        std::vector<float> min(count, INFINITY), max(count, -INFINITY);
        for (size_t i = 0; i < count; ++i) {
          const size_t cell = CellOf(per, 32, count, i);
          min[cell] = std::fmin(min[cell], x[i]);
          max[cell] = std::fmax(max[cell], x[i]);
        }
        for (int bits = 2; bits <= 12; ++bits) {
          for (const bool symmetric : {true, false}) {
            for (const char* layout : {"packed", "bytes"}) {
              const std::string spec = absl::StrFormat("quant(bits=%d,per=%s,group=32,symmetric=%s,layout=%s)", bits,
                                                       per, symmetric ? "true" : "false", layout);
              const auto y =
                  Floats(dtype, RoundTrip(spec, MakeTensor("t", dtype, {count / kHeadDim, kHeadDim}), values));
              for (size_t i = 0; i < count; ++i) {
                const size_t cell = CellOf(per, 32, count, i);
                ASSERT_LE(std::fabs(double{x[i]} - double{y[i]}),
                          HalfStep(dtype, bits, symmetric, min[cell], max[cell]))
                    << spec << " " << DTypeName(dtype) << " value " << i << " of " << count << ", distribution "
                    << static_cast<int>(distribution) << ": " << x[i] << " became " << y[i];
              }
            }
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, QuantTest, ::testing::Values("block", "channel", "token", "group"),
                         [](const auto& param_info) { return std::string(param_info.param); });

// A scale that is rounded up must not carry what it decodes to out of binary32.
TEST(QuantTest, TheLargestValuesThatItTakesKeepTheirHalfStep) {
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    for (int bits = 2; bits <= 12; ++bits) {
      const std::string spec = absl::StrFormat("clamp(limit=8.5e37)|quant(bits=%d,per=block,symmetric=false)", bits);
      std::vector<std::byte> values(300 * DTypeSize(dtype));
      for (size_t i = 0; i < 300; ++i) {
        StoreFromF32(dtype, (i % 2 == 0 ? 1.0f : -1.0f) * MaxFinite(dtype) / 4 / static_cast<float>(1 + i / 2),
                     values.data(), i);
      }
      const auto x = Floats(dtype, RoundTrip("clamp(limit=8.5e37)|raw", MakeTensor("t", dtype, {300}), values));
      const auto y = Floats(dtype, RoundTrip(spec, MakeTensor("t", dtype, {300}), values));
      for (size_t i = 0; i < 300; ++i) {
        ASSERT_LE(std::fabs(double{x[i]} - double{y[i]}), HalfStep(dtype, bits, false, x[1], x[0])) << spec << " " << i;
      }
    }
  }
  std::vector<std::byte> values(4 * 4);
  StoreFromF32(DType::kF32, std::numeric_limits<float>::max() / 3, values.data(), 2);
  EXPECT_THAT(EncodeOneBlock(MakeChain("quant(symmetric=false)"), MakeTensor("t", DType::kF32, {4}), values, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("value 2 is 1.13427e+38")));
}

// A cell of equal values is exact with a minimum, wherever it lies, and costs nothing to others.
TEST(QuantTest, AsymmetricConstantsAreExact) {
  for (const DType dtype : kKernelDTypes) {
    std::vector<std::byte> values(32 * kHeadDim * DTypeSize(dtype));
    for (size_t i = 0; i < 32 * kHeadDim; ++i) {
      StoreFromF32(dtype, 1000.0f * static_cast<float>(i % kHeadDim) - 17.3f, values.data(), i);
    }
    EXPECT_EQ(RoundTrip("quant(bits=2,per=channel,symmetric=false)", MakeTensor("t", dtype, {32, kHeadDim}), values),
              values);
  }
}

TEST(QuantTest, MinimaAndMaximaOfACellAreKeptWithAZeroPoint) {
  const size_t count = 50 * kHeadDim;
  const auto values = MakeValues(DType::kF32, count, Distribution::kOutliers);
  const auto x = Floats(DType::kF32, values);
  const auto y = Floats(DType::kF32, RoundTrip("quant(bits=2,per=token,symmetric=false)",
                                               MakeTensor("t", DType::kF32, {50, kHeadDim}), values));
  for (size_t token = 0; token < 50; ++token) {
    const auto begin = x.begin() + static_cast<ptrdiff_t>(token * kHeadDim);
    const auto lowest = static_cast<size_t>(std::min_element(begin, begin + kHeadDim) - x.begin());
    EXPECT_EQ(y[lowest], x[lowest]);
  }
}

TEST(QuantTest, OutliersAreTheLargestAndExactAndCountForNoScale) {
  for (const DType dtype : kKernelDTypes) {
    for (const char* per : {"block", "channel", "token", "group"}) {
      const size_t count = 40 * kHeadDim + 5;
      const auto values = MakeValues(dtype, count, Distribution::kOutliers);
      const auto x = Floats(dtype, values);
      const std::string spec = absl::StrFormat("quant(bits=8,per=%s,outliers=0.02)", per);
      const auto y = Floats(dtype, RoundTrip(spec, MakeTensor("t", dtype, {count / kHeadDim, kHeadDim}), values));
      std::vector<size_t> order(count);
      std::iota(order.begin(), order.end(), size_t{0});
      std::stable_sort(order.begin(), order.end(),
                       [&](size_t a, size_t b) { return std::fabs(x[a]) > std::fabs(x[b]); });
      const auto outliers = static_cast<size_t>(0.02 * static_cast<double>(count));
      for (size_t k = 0; k < outliers; ++k) EXPECT_EQ(y[order[k]], x[order[k]]) << spec << " value " << order[k];
      const double largest = std::fabs(x[order[outliers]]);
      for (size_t k = outliers; k < count; ++k) {
        const size_t i = order[k];
        EXPECT_LE(std::fabs(double{x[i]} - double{y[i]}), largest * (0.5 / 127 * 1.01 + 0x1p-7)) << spec;
      }
    }
  }
}

TEST(QuantTest, OfEqualMagnitudesTheFirstAreOutliers) {
  std::vector<std::byte> values(100 * 4);
  for (size_t i = 0; i < 100; ++i) StoreFromF32(DType::kF32, i % 2 == 0 ? 1.1f : -1.1f, values.data(), i);
  const auto y = Floats(DType::kF32, RoundTrip("quant(bits=2,per=group,group=32,outliers=0.05)|zstd",
                                               MakeTensor("t", DType::kF32, {100}), values));
  for (size_t i = 0; i < 100; ++i) EXPECT_EQ(std::fabs(y[i]) == 1.1f, i < 5) << i << ": " << y[i];
}

TEST(QuantTest, SizesAreThoseOfTheFormulas) {
  const size_t count = 128 * 64;
  const auto values = MakeValues(DType::kF16, count, Distribution::kGaussian);
  const TensorDesc tensor = MakeTensor("layer_0_key", DType::kF16, {1, 2, 64, 64});
  const auto size_of = [&](std::string_view spec) {
    return EncodeOneBlock(MakeChain(spec), tensor, values, nullptr)->size();
  };
  EXPECT_EQ(size_of("quant(bits=10,per=token)"), 3 * 4 + 4 + 2 * 128 + count * 10 / 8);
  EXPECT_EQ(size_of("quant(bits=3,per=block)"), 2 * 4 + 2 + count * 3 / 8);
  EXPECT_EQ(size_of("quant(bits=2,per=channel,group=32,symmetric=false)"), 3 * 4 + 4 + 4 * 64 * 4 + count * 2 / 8);
  EXPECT_EQ(size_of("quant(bits=2,per=channel,group=4096)"), 2 * 4 + 4 + 2 * 64 + count * 2 / 8);
  EXPECT_EQ(size_of("quant(bits=6,per=group,layout=bytes)"), 2 * 4 + 2 * 128 + count);
}

TEST(QuantTest, ValuesThatCannotBeHeldAreNamed) {
  for (const char* spec :
       {"quant(bits=4)", "quant(bits=4,symmetric=false)", "quant(bits=4,outliers=0.1)", "blocknorm"}) {
    for (const DType dtype : kKernelDTypes) {
      auto values = MakeValues(dtype, 300, Distribution::kGaussian);
      StoreFromF32(dtype, std::nanf(""), values.data(), 211);
      EXPECT_THAT(EncodeOneBlock(MakeChain(spec), MakeTensor("layer_3_key", dtype, {300}), values, nullptr),
                  StatusIs(absl::StatusCode::kInvalidArgument,
                           ::testing::HasSubstr("tensor \"layer_3_key\": value 211 is NaN, which")))
          << spec;
    }
  }
  auto values = MakeValues(DType::kF32, 300, Distribution::kGaussian);
  StoreFromF32(DType::kF32, 3e38f, values.data(), 5);
  EXPECT_THAT(RoundTrip("quant(bits=4)", MakeTensor("t", DType::kF32, {300}), values), ::testing::SizeIs(1200));
  EXPECT_THAT(EncodeOneBlock(MakeChain("quant(symmetric=false)"), MakeTensor("t", DType::kF32, {300}), values, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("value 5 is 3e+38")));
}

TEST(QuantTest, LargestValuesDecodeToFiniteOnes) {
  for (const DType dtype : kKernelDTypes) {
    for (int bits = 2; bits <= 12; ++bits) {
      std::vector<std::byte> values(64 * DTypeSize(dtype));
      for (size_t i = 0; i < 64; ++i) StoreFromF32(dtype, i % 2 == 0 ? MaxFinite(dtype) : -1.0f, values.data(), i);
      const std::string spec = absl::StrFormat("quant(bits=%d,per=block)", bits);
      const auto y = Floats(dtype, RoundTrip(spec, MakeTensor("t", dtype, {64}), values));
      EXPECT_TRUE(std::all_of(y.begin(), y.end(), [](float v) { return std::isfinite(v); })) << spec;
      EXPECT_NEAR(y[0] / MaxFinite(dtype), 1, 0.51 / ((1 << (bits - 1)) - 1));
    }
  }
}

TEST(QuantSpecTest, CanonicalTextAndFaults) {
  EXPECT_EQ(ChainSpec::Parse("quant")->text(),
            "quant(bits=8,per=token,group=64,symmetric=true,outliers=0,layout=packed)");
  EXPECT_EQ(ChainSpec::Parse("blocknorm")->text(), "blocknorm(block=128,topk=0.02,bits=10)");
  EXPECT_EQ(ChainSpec::Parse("clip|raw")->text(), "clip(percentile=99.9)|raw");
  const struct {
    std::string_view spec, message;
  } cases[] = {
      {"quant(bits=13)", "quant: bits=13 is not an integer from 2 to 12"},
      {"quant(bits=1)", "quant: bits=1 is not an integer from 2 to 12"},
      {"quant(per=head)", "quant: per=head is not one of block, channel, token, group"},
      {"quant(symmetric=1)", "quant: symmetric=1 is not one of true, false"},
      {"quant(outliers=0.2)", "quant: outliers=0.2 is not a number from 0 to 0.1"},
      {"quant(layout=planes)", "quant: layout=planes is not one of packed, bytes"},
      {"clip(percentile=101)|raw", "clip: percentile=101 is not a number from 0 to 100"},
      {"blocknorm(block=48)", "blocknorm: block=48 is not one of 32, 64, 128, 256"},
  };
  for (const auto& one : cases) {
    EXPECT_THAT(ChainSpec::Parse(one.spec), StatusIs(absl::StatusCode::kInvalidArgument, std::string(one.message)));
  }
}

TEST(IndexListTest, ComesBackAndRefusesWhatIsNotOne) {
  const std::vector<uint32_t> indices = {0, 1, 5, 132, 133, 20000, 4000000};
  std::vector<std::byte> mask((4000000 / 64 + 1) * 8);
  for (const uint32_t index : indices) mask[index / 8] |= static_cast<std::byte>(1u << index % 8);
  std::vector<std::byte> bytes(MaxIndexListBytes(indices.size()));
  bytes.resize(WriteIndexList(mask, bytes.data()));
  EXPECT_EQ(bytes.size(), 1 + 1 + 1 + 1 + 1 + 3 + 4);
  std::vector<uint32_t> got;
  ASSERT_THAT(ReadIndexList(bytes, indices.size(), 4000001, got), IsOk());
  EXPECT_EQ(got, indices);
  const auto read = [&](std::initializer_list<int> list, size_t count, size_t limit) {
    std::vector<std::byte> input;
    for (const int byte : list) input.push_back(static_cast<std::byte>(byte));
    return ReadIndexList(input, count, limit, got);
  };
  const auto damaged = StatusIs(absl::StatusCode::kDataLoss, "list of indices is damaged");
  EXPECT_THAT(ReadIndexList(bytes, indices.size(), 4000000, got), damaged);
  EXPECT_THAT(ReadIndexList(bytes, indices.size() - 1, 4000001, got), damaged);
  EXPECT_THAT(read({}, 1, 10), damaged);
  EXPECT_THAT(read({0x80}, 1, 10), damaged);
  EXPECT_THAT(read({0x81, 0x00}, 1, 10), damaged);
  EXPECT_THAT(read({0xff, 0xff, 0xff, 0xff}, 1, 1 << 28), damaged);
  EXPECT_THAT(read({1, 2}, 1, 10), damaged);
  EXPECT_THAT(read({9, 0}, 2, 10), damaged);
  EXPECT_THAT(read({8, 0}, 2, 10), IsOk());
}

}  // namespace
}  // namespace kvcompress
