#include "core/simd/channel_classes.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "tests/core/simd/with_target.h"

namespace kvcompress::simd {
namespace {

using ::kvcompress::testing::UsableTargets;
using ::kvcompress::testing::WithTarget;

TEST(ChannelClasses, AreThoseOfTheNearestDeviation) {
  EXPECT_EQ(ClassOf(0), kMinClass);
  EXPECT_EQ(ClassOf(1), 0);
  EXPECT_EQ(ClassOf(4), 4);
  EXPECT_EQ(ClassOf(0x1p60f), kMaxClass);
  for (int of = kMinClass; of <= kMaxClass; ++of) EXPECT_EQ(ClassOf(std::exp2(0.5f * static_cast<float>(of))), of);
}

// Means and variances of all sizes that values in units have, and those beside which a class or a mean changes.
struct Channels {
  std::vector<float> means, variances;
  std::vector<int32_t> expected;

  explicit Channels(size_t count) {
    std::mt19937 random(static_cast<uint32_t>(count));
    std::uniform_real_distribution<float> octave(-12, 22), sign(-1, 1);
    std::uniform_int_distribution<int> choice(0, 7);
    for (size_t c = 0; c < count; ++c) {
      const float deviation = std::exp2(octave(random)), size = std::exp2(octave(random));
      const int which = choice(random);
      means.push_back(which == 0 ? 0 : sign(random) * (which < 4 ? deviation : size));
      variances.push_back(which == 1 ? 0 : which == 2 ? std::exp2(std::round(octave(random))) : deviation * deviation);
      if (which == 3) means.back() = std::round(means.back() * 4) / 4;
      expected.push_back(which == 5 ? 0 : static_cast<int32_t>(2 * means.back() + sign(random) * deviation));
    }
  }
  ChannelSpan Span(size_t tokens) const { return {means.size(), tokens, means.data(), variances.data()}; }
};

class ChannelClassesTest : public ::testing::TestWithParam<int64_t> {
 private:
  const WithTarget with_{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(All, ChannelClassesTest, ::testing::ValuesIn(UsableTargets()),
                         [](const auto& param) { return std::string(hwy::TargetName(param.param)); });

TEST_P(ChannelClassesTest, ClassesAndMeansAreThoseOfTheDefinition) {
  for (const size_t count : {0, 1, 3, 4, 7, 15, 16, 17, 31, 64, 100, 4000}) {
    const Channels channels(count);
    for (const size_t tokens : {1, 2, 16, 63, 64, 1000, 1 << 20}) {
      SCOPED_TRACE(std::to_string(count) + " channels, " + std::to_string(tokens) + " tokens");
      const ChannelSpan span = channels.Span(tokens);
      std::vector<int32_t> classes(count), got_classes(count), means(count), got_means(count);
      std::vector<float> bits(count), got_bits(count);
      scalar::ClassesOfVariances(span, classes.data(), bits.data());
      ClassesOfVariances(span, got_classes.data(), got_bits.data());
      EXPECT_EQ(got_classes, classes);
      EXPECT_EQ(got_bits, bits);
      for (const int32_t* const expected : {channels.expected.data(), static_cast<const int32_t*>(nullptr)}) {
        scalar::ChooseMeans(span, classes.data(), expected, means.data(), bits.data());
        ChooseMeans(span, classes.data(), expected, got_means.data(), got_bits.data());
        EXPECT_EQ(got_means, means);
        EXPECT_EQ(got_bits, bits);
        std::vector<int32_t> wider(count), got_wider(count);
        scalar::ClassesAboutMeans(span, means.data(), wider.data());
        ClassesAboutMeans(span, means.data(), got_wider.data());
        EXPECT_EQ(got_wider, wider);
      }
    }
  }
}

}  // namespace
}  // namespace kvcompress::simd
