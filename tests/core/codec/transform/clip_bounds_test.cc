#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "absl/strings/str_format.h"
#include "core/base/half.h"
#include "tests/core/codec/chain_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

constexpr float kClipInfinity = std::numeric_limits<float>::infinity();
constexpr size_t kClipBlock = 256;
constexpr DType kClipDTypes[] = {DType::kF16, DType::kBF16, DType::kF32};

std::vector<float> ClipFloats(DType dtype, ByteSpan values) {
  std::vector<float> floats(values.size() / DTypeSize(dtype));
  for (size_t i = 0; i < floats.size(); ++i) floats[i] = LoadAsF32(dtype, values.data(), i);
  return floats;
}

std::vector<std::byte> ClipBytes(DType dtype, const std::vector<float>& floats) {
  std::vector<std::byte> values(floats.size() * DTypeSize(dtype));
  for (size_t i = 0; i < floats.size(); ++i) StoreFromF32(dtype, floats[i], values.data(), i);
  return values;
}

// What decodes of a tensor that is encoded in blocks of kClipBlock.
std::vector<float> Clipped(std::string_view spec, DType dtype, ByteSpan values) {
  const size_t width = DTypeSize(dtype);
  const TensorDesc tensor = MakeTensor("t", dtype, {values.size() / width});
  const CodecChain chain = MakeChain(spec, tensor);
  const auto state = chain.Analyze(tensor, MemorySource(values), kClipBlock);
  EXPECT_THAT(state, IsOk());
  std::vector<std::byte> decoded(values.size());
  for (size_t first = 0; first * width < values.size(); first += kClipBlock) {
    const size_t n = std::min(kClipBlock, values.size() / width - first);
    std::vector<std::byte> payload(chain.MaxPayloadBytes(tensor, n));
    const auto size =
        chain.EncodeBlock({tensor, first, n, values.subspan(first * width, n * width)}, *state, payload, nullptr);
    EXPECT_THAT(size, IsOk());
    EXPECT_THAT(chain.DecodeBlock(tensor, ByteSpan(payload).first(*size),
                                  MutableByteSpan(decoded).subspan(first * width, n * width)),
                IsOk());
  }
  return ClipFloats(dtype, decoded);
}

TEST(ClipRangeTest, SaturatesAtBothPercentilesOfTheWholeTensor) {
  constexpr std::pair<double, double> kRanges[] = {{1, 99}, {0, 100}, {25, 25}, {0, 0}, {100, 100}, {12.5, 60}};
  for (const DType dtype : kClipDTypes) {
    for (const Distribution distribution : kAllDistributions) {
      const auto values = MakeValues(dtype, 1000, distribution);
      const std::vector<float> in = ClipFloats(dtype, values);
      std::vector<float> sorted = in;
      std::sort(sorted.begin(), sorted.end());
      const auto at = [&](double percentile) {  // in tenths of a percent of 1000 values, exactly
        return sorted[std::max<size_t>(static_cast<size_t>(std::lround(percentile * 10)), 1) - 1];
      };
      for (const auto& [low, high] : kRanges) {
        const auto out = Clipped(absl::StrFormat("clip_range(low=%g,high=%g)|raw", low, high), dtype, values);
        for (size_t i = 0; i < in.size(); ++i) {
          ASSERT_EQ(out[i], std::clamp(in[i], at(low), at(high))) << DTypeName(dtype) << " value " << i;
        }
      }
    }
  }
}

// What sparse drops is +0 to the bounds, too, whether or not a mask of what is kept would take fewer bytes.
TEST(ClipRangeTest, ZerosThatSparseLeavesSaturateLikeAllOthers) {
  for (const DType dtype : kClipDTypes) {
    for (const float sign : {1.0f, -1.0f}) {
      for (const size_t dropped : {4u, 300u}) {
        std::vector<float> in(1000);
        for (size_t i = 0; i < in.size(); ++i) in[i] = sign * static_cast<float>(1 + i % 250);
        std::vector<float> sparse = in;  // each magnitude is there four times, and the smallest go
        for (float& x : sparse) x = std::fabs(x) <= static_cast<float>(dropped / 4) ? 0 : x;
        std::vector<float> sorted = sparse;
        std::sort(sorted.begin(), sorted.end());
        const float low = sorted[399];
        const float high = sorted[599];
        const auto out = Clipped(
            absl::StrFormat("sparse(ratio=%g)|clip_range(low=40,high=60)|raw", static_cast<double>(dropped) / 1000),
            dtype, ClipBytes(dtype, in));
        for (size_t i = 0; i < in.size(); ++i) {
          ASSERT_EQ(out[i], std::clamp(sparse[i], low, high)) << DTypeName(dtype) << " " << dropped << " value " << i;
        }
      }
    }
  }
}

// The bounds are those of the tensor as clip_range leaves it, in which no zero is left.
TEST(ClipSigmaTest, AfterOtherBoundsItSeesWhatTheseMadeOfZeros) {
  std::vector<float> in(1000);
  for (size_t i = 0; i < in.size(); ++i) in[i] = i % 2 == 0 ? 1.0f : 9.0f;
  const auto out = Clipped("sparse(ratio=0.25)|clip_range(low=50,high=100)|clip_sigma(sigma=0.5)|raw", DType::kF32,
                           ClipBytes(DType::kF32, in));
  // Half of the values are 1 and 0, which become 1, and half are 9: a mean of 5 and a deviation of 4.
  for (size_t i = 0; i < in.size(); ++i) ASSERT_EQ(out[i], i % 2 == 0 ? 3.0f : 7.0f) << i;
}

TEST(ClipRangeTest, OnlyFiniteValuesCountAndInfinitiesSaturate) {
  const std::vector<float> in = {1, -kClipInfinity, std::nanf(""), 2, -3, kClipInfinity, -std::nanf(""),
                                 4, -kClipInfinity};
  for (const DType dtype : kClipDTypes) {
    EXPECT_THAT(Clipped("clip_range(low=0,high=75)|raw", dtype, ClipBytes(dtype, in)),
                ::testing::ElementsAre(1, -3, ::testing::IsNan(), 2, -3, 2, ::testing::IsNan(), 2, -3));
    EXPECT_THAT(Clipped("clip_range|raw", dtype, ClipBytes(dtype, {kClipInfinity, -kClipInfinity})),
                ::testing::ElementsAre(kClipInfinity, -kClipInfinity));
    EXPECT_THAT(Clipped("clip_range|raw", dtype, {}), ::testing::IsEmpty());
  }
}

TEST(ClipRangeTest, ARangeThatEndsBeforeItBeginsIsRefused) {
  EXPECT_THAT(ChainSpec::Parse("clip_range(low=2,high=1)|raw"),
              StatusIs(absl::StatusCode::kInvalidArgument, "clip_range: low is above high"));
}

// An older frame's spec stays the canonical one.
TEST(ClipRangeTest, ClipItselfIsWhatItWas) {
  EXPECT_EQ(ChainSpec::Parse("clip|raw")->text(), "clip(percentile=99.9)|raw");
}

struct FloatBounds {
  float lower, upper;
};

// By the definition.
FloatBounds SumInOrder(DType dtype, const std::vector<float>& values, double sigma) {
  std::vector<double> finite;
  for (const float x : values) {
    if (std::isfinite(x)) finite.push_back(x);
  }
  const auto count = static_cast<double>(finite.size());
  double sum = 0;
  for (const double x : finite) sum += x;
  const double mean = sum / count;
  double squares = 0;
  for (const double x : finite) squares += (x - mean) * (x - mean);
  const double reach = sigma * std::sqrt(squares / count);
  const auto most = static_cast<double>(MaxFinite(dtype));
  const auto rounded = [&](double x) { return RoundTo(dtype, static_cast<float>(std::clamp(x, -most, most))); };
  return {rounded(mean - reach), rounded(mean + reach)};
}

// Returns how many values changed.
size_t ExpectClippedInOrder(DType dtype, const std::vector<float>& in, double sigma) {
  const auto [lower, upper] = SumInOrder(dtype, in, sigma);
  const auto out = Clipped(absl::StrFormat("clip_sigma(sigma=%.17g)|raw", sigma), dtype, ClipBytes(dtype, in));
  size_t changed = 0;
  for (size_t i = 0; i < in.size(); ++i) {
    if (std::isnan(in[i])) {
      EXPECT_TRUE(std::isnan(out[i]));
      continue;
    }
    EXPECT_EQ(out[i], std::clamp(in[i], lower, upper)) << DTypeName(dtype) << " sigma " << sigma << " value " << i;
    changed += out[i] != in[i];
  }
  return changed;
}

TEST(ClipSigmaTest, SaturatesAtDeviationsFromTheMean) {
  for (const DType dtype : kClipDTypes) {
    for (const double sigma : {0.0, 0.5, 2.0, 1000.0}) {
      std::vector<float> in = ClipFloats(dtype, MakeValues(dtype, 1000, Distribution::kGaussian));
      for (float& x : in) x = RoundTo(dtype, x + 5);  // the mean is not 0
      EXPECT_EQ(ExpectClippedInOrder(dtype, in, sigma) > 0, sigma <= 2);
    }
  }
}

TEST(ClipSigmaTest, ValuesOfEveryKindHaveTheBoundsOfTheDefinition) {
  std::mt19937 random(8);
  for (const DType dtype : kClipDTypes) {
    for (int round = 0; round < 200; ++round) {
      const size_t count = 1 + random() % 2000;
      std::vector<float> in(count);
      if (round % 4 == 0) {  // bits
        in = ClipFloats(dtype, MakeBits(count * DTypeSize(dtype), static_cast<uint32_t>(round)));
      } else {
        const float mean = round % 4 == 1 ? 0 : Bell(random) * 100;
        const float deviation = round % 4 == 3 ? 1e-3f : 1;
        for (float& x : in) x = RoundTo(dtype, mean + Bell(random) * deviation);
      }
      if (std::ranges::none_of(in, [](float x) { return std::isfinite(x); })) continue;
      ExpectClippedInOrder(dtype, in, (round % 7) * 0.5);
      if (HasFailure()) return;
    }
  }
}

// A sum that loses what in another order it would not.
TEST(ClipSigmaTest, SumsGoInTheOrderOfTheValues) {
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    std::vector<float> in(1000, 1.0f);
    in[0] = 0x1p60f;
    in[900] = -0x1p60f;
    const auto [lower, upper] = SumInOrder(dtype, in, 0);
    EXPECT_EQ(lower, RoundTo(dtype, 99.0f / 1000));
    EXPECT_EQ(ExpectClippedInOrder(dtype, in, 0), in.size());
  }
}

// The mean lies in the middle of two neighbours, of which the even one is taken.
TEST(ClipSigmaTest, ATieOfTheBoundGoesToTheEvenValue) {
  for (const DType dtype : kClipDTypes) {
    const float up = 1 + std::ldexp(1.0f, -static_cast<int>(MantissaBits(dtype)));
    std::vector<float> in(1000, 1.0f);
    for (size_t i = 0; i < in.size(); i += 2) in[i] = up;
    EXPECT_EQ(ExpectClippedInOrder(dtype, in, 0), in.size() / 2);
  }
}

TEST(ClipSigmaTest, AConstantStaysAndSoDoesWhatIsNoNumber) {
  for (const DType dtype : kClipDTypes) {
    const float tenth = RoundTo(dtype, 0.1f);
    EXPECT_THAT(Clipped("clip_sigma|raw", dtype, ClipBytes(dtype, std::vector<float>(777, tenth))),
                ::testing::Each(tenth));
    EXPECT_THAT(Clipped("clip_sigma(sigma=1)|raw", dtype,
                        ClipBytes(dtype, {1, -1, kClipInfinity, -kClipInfinity, std::nanf("")})),
                ::testing::ElementsAre(1, -1, 1, -1, ::testing::IsNan()));
    // A bound beyond the dtype is no infinity.
    const float most = MaxFinite(dtype);
    EXPECT_THAT(Clipped("clip_sigma(sigma=1000)|raw", dtype, ClipBytes(dtype, {most, -most, kClipInfinity})),
                ::testing::ElementsAre(most, -most, most));
  }
}

}  // namespace
}  // namespace kvcompress
