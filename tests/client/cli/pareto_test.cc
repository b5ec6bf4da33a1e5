#include "client/cli/pareto.h"

#include <gmock/gmock.h>

#include <limits>
#include <random>

namespace kvcompress {
namespace {

using ::testing::ElementsAre;
constexpr double kLossless = std::numeric_limits<double>::infinity();

TEST(ParetoFront, KeepsWhatNothingBeats) {
  const std::vector<RatePoint> points = {{4.25, 19}, {4.25, 18}, {5, 19}, {3, 10}, {8.25, 44}, {4, 9}};
  EXPECT_THAT(ParetoFront(points), ElementsAre(true, false, false, true, true, false));
}

TEST(ParetoFront, OfLosslessPointsTheSmallest) {
  const std::vector<RatePoint> points = {{16, kLossless}, {13, kLossless}, {14, 80}, {8, 44}};
  EXPECT_THAT(ParetoFront(points), ElementsAre(false, true, false, true));
}

TEST(ParetoFront, OfEqualPointsTheFirst) {
  const std::vector<RatePoint> points = {{4, 20}, {4, 20}, {9, kLossless}, {9, kLossless}};
  EXPECT_THAT(ParetoFront(points), ElementsAre(true, false, true, false));
}

TEST(ParetoFront, OfNothingAndOfOne) {
  EXPECT_THAT(ParetoFront({}), ElementsAre());
  EXPECT_THAT(ParetoFront(std::vector<RatePoint>{{16, -999}}), ElementsAre(true));
}

TEST(ParetoFront, AgreesWithItsDefinition) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    std::vector<RatePoint> points(1 + random() % 12);
    for (RatePoint& point : points) point = {static_cast<double>(random() % 6), static_cast<double>(random() % 6)};
    const std::vector<bool> front = ParetoFront(points);
    for (size_t i = 0; i < points.size(); ++i) {
      bool beaten = false;
      for (size_t j = 0; j < points.size(); ++j) {
        const bool as_good = points[j].bits <= points[i].bits && points[j].snr >= points[i].snr;
        const bool equal = points[j].bits == points[i].bits && points[j].snr == points[i].snr;
        beaten = beaten || (as_good && (!equal || j < i));
      }
      EXPECT_EQ(front[i], !beaten) << "round " << round << ", point " << i;
    }
  }
}

}  // namespace
}  // namespace kvcompress
