#include "core/simd/segment_values.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "core/base/half.h"
#include "core/simd/trellis.h"
#include "tests/core/simd/gaussian.h"
#include "tests/core/simd/guarded.h"
#include "tests/core/simd/with_target.h"

namespace kvcompress::simd {
namespace {

using ::kvcompress::testing::GaussianValues;
using ::kvcompress::testing::Guarded;
using ::kvcompress::testing::UsableTargets;
using ::kvcompress::testing::WithTarget;

using Floats = std::vector<float>;

// Floats that end, or begin, at a page that cannot be touched.
class GuardedFloats {
 public:
  explicit GuardedFloats(const Floats& from)
      : bytes_(from.data(), 4 * from.size(),
               from.size() % 2 ? Guarded::Against::kPageBefore : Guarded::Against::kPageAfter) {}
  explicit GuardedFloats(size_t size) : GuardedFloats(Floats(size)) {}

  float* data() { return reinterpret_cast<float*>(bytes_.data()); }
  bool operator==(const Floats& other) const {
    return bytes_.size() == 0 || std::memcmp(bytes_.data(), other.data(), bytes_.size()) == 0;
  }

 private:
  Guarded bytes_;
};

class SegmentValuesTest : public ::testing::TestWithParam<int64_t> {
 private:
  const WithTarget with_{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(All, SegmentValuesTest, ::testing::ValuesIn(UsableTargets()),
                         [](const auto& param) { return std::string(hwy::TargetName(param.param)); });

constexpr size_t kValueCounts[] = {0, 1, 3, 4, 15, 16, 17, 31, 64, 100, 1000};

TEST_P(SegmentValuesTest, ScaledValuesAndTheirMagnitudeAreThoseOfTheDefinition) {
  for (const DType dtype : kKernelDTypes) {
    for (const size_t count : kValueCounts) {
      const Floats values = GaussianValues(count, 3, static_cast<uint32_t>(count));
      std::vector<uint8_t> elements(count * DTypeSize(dtype));
      for (size_t i = 0; i < count; ++i) StoreFromF32(dtype, values[i], elements.data(), i);
      const Guarded in(elements.data(), elements.size(), Guarded::Against::kPageAfter);
      Floats want(count);
      GuardedFloats got(count);
      EXPECT_EQ(LoadScaled(dtype, in.data(), count, 0.3f, got.data()),
                scalar::LoadScaled(dtype, elements.data(), count, 0.3f, want.data()));
      EXPECT_TRUE(got == want) << DTypeName(dtype) << " " << count;
    }
  }
}

// Of every size, by factors that make none of them subnormal, and one that nearly does.
TEST_P(SegmentValuesTest, SubnormalValuesAreLoadedAsTheyAre) {
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    const size_t count = 4096;
    const Floats sizes = GaussianValues(count, 1, 5);
    std::vector<std::byte> elements(count * DTypeSize(dtype));
    for (size_t i = 0; i < count; ++i) {
      StoreFromF32(dtype, std::ldexp(sizes[i], static_cast<int>(i % 280) - 150), elements.data(), i);
    }
    for (const float factor : {1.0f, 0x1p42f, 0x1.fffffep41f, 0x1.345678p60f, 0x1.fedcbap99f, 0x1p101f}) {
      Floats want(count), got(count);
      EXPECT_EQ(LoadScaled(dtype, elements.data(), count, factor, got.data()),
                scalar::LoadScaled(dtype, elements.data(), count, factor, want.data()));
      EXPECT_TRUE(got == want) << DTypeName(dtype) << " " << factor;
    }
  }
}

TEST_P(SegmentValuesTest, AddsToEachChannelItsOwn) {
  for (const size_t channels : {1, 5, 16, 40, 64}) {
    const Floats addends = GaussianValues(channels, 1, 8);
    GuardedFloats in(addends);
    for (const size_t count : kValueCounts) {
      Floats want = GaussianValues(count, 3, static_cast<uint32_t>(count));
      GuardedFloats got(want);
      scalar::AddToChannels(addends.data(), channels, want.data(), count);
      AddToChannels(in.data(), channels, got.data(), count);
      EXPECT_TRUE(got == want) << channels << " " << count;
    }
  }
}

TEST_P(SegmentValuesTest, NarrowingLimitsAndRounds) {
  for (const DType dtype : kKernelDTypes) {
    for (const size_t count : kValueCounts) {
      Floats values = GaussianValues(count, 10, static_cast<uint32_t>(count) + 1);
      for (size_t i = 0; i < count; i += 5) {
        constexpr std::array kEdges = {1e30f, -3e38f, 65519.0f, -65521.0f, std::numeric_limits<float>::infinity(),
                                       1e-41f};
        values[i] = kEdges[i / 5 % kEdges.size()];
      }
      GuardedFloats in(values);
      std::vector<uint8_t> want(count * DTypeSize(dtype));
      Guarded got(want.size(), Guarded::Against::kPageAfter);
      scalar::NarrowLimited(dtype, values.data(), count, want.data());
      NarrowLimited(dtype, in.data(), count, got.data());
      EXPECT_TRUE(want.empty() || std::memcmp(got.data(), want.data(), want.size()) == 0)
          << DTypeName(dtype) << " " << count;
      for (size_t i = 0; i < count; ++i) EXPECT_TRUE(std::isfinite(LoadAsF32(dtype, want.data(), i)));
    }
  }
}

TEST_P(SegmentValuesTest, SumsAreThoseOfTheDefinitionToTheBit) {
  for (const size_t tokens : {1, 2, 40}) {
    for (const size_t channels : {1, 16, 20, 48, 64, 100, 144}) {
      SCOPED_TRACE(::testing::Message() << tokens << " tokens " << channels << " channels");
      const Floats values = GaussianValues(tokens * channels, 2, 5);
      const Floats means = GaussianValues(channels, 1, 6), weights = GaussianValues(channels, 1, 7);
      std::vector<uint8_t> skip(tokens);
      if (tokens > 2) skip[0] = skip[17] = 1;
      GuardedFloats in(values), in_means(means), in_weights(weights), sums(channels), squares(channels),
          energies(tokens);
      Floats want(channels), want_energies(tokens);
      scalar::ChannelSums(values.data(), tokens, channels, skip.data(), want.data());
      ChannelSums(in.data(), tokens, channels, skip.data(), sums.data());
      EXPECT_TRUE(sums == want);
      scalar::ChannelSquares(values.data(), tokens, channels, skip.data(), means.data(), want.data());
      ChannelSquares(in.data(), tokens, channels, skip.data(), in_means.data(), squares.data());
      EXPECT_TRUE(squares == want);
      scalar::TokenEnergies(values.data(), tokens, channels, means.data(), weights.data(), want_energies.data());
      TokenEnergies(in.data(), tokens, channels, in_means.data(), in_weights.data(), energies.data());
      EXPECT_TRUE(energies == want_energies);
    }
  }
}

TEST_P(SegmentValuesTest, StripsArePlacedAsTheDefinitionDoes) {
  constexpr size_t kTokens = 19;
  for (const size_t channels : {1, 7, 16, 31, 32}) {
    const size_t stride = channels + 9;
    Floats means(kStripChannels);
    for (size_t c = 0; c < channels; ++c) means[c] = static_cast<float>(c) * 0.37f;
    GuardedFloats in_means(means);
    std::vector<int32_t> points(kTokens * kStripChannels);
    std::mt19937 random(9);
    for (int32_t& point : points) point = static_cast<int32_t>(random() % 100'000) - 50'000;
    points[0] = -kMaxPoint;  // beyond the range of F16
    for (const DType dtype : kKernelDTypes) {
      SCOPED_TRACE(DTypeName(dtype));
      std::vector<uint8_t> want_placed(((kTokens - 1) * stride + channels) * DTypeSize(dtype), 0x2a);
      Guarded placed(want_placed.size(), Guarded::Against::kPageAfter);
      std::memcpy(placed.data(), want_placed.data(), want_placed.size());
      scalar::PlaceStrip(points.data(), kTokens, channels, {{dtype, want_placed.data(), stride}, 0.013f, means.data()});
      PlaceStrip(points.data(), kTokens, channels, {{dtype, placed.data(), stride}, 0.013f, in_means.data()});
      EXPECT_EQ(std::memcmp(placed.data(), want_placed.data(), want_placed.size()), 0) << channels;
      EXPECT_TRUE(std::isfinite(LoadAsF32(dtype, want_placed.data(), 0)));
    }
  }
}

}  // namespace
}  // namespace kvcompress::simd
