#include "server/telemetry/line_limiter.h"

#include <gtest/gtest.h>

namespace kvcompress {
namespace {

TEST(LineLimiterTest, OneLineOfEachSourceInAWhileAndTheNumberOfTheOthers) {
  LineLimiter limiter(absl::Seconds(10));
  const absl::Time start = absl::FromUnixSeconds(1'000'000);
  EXPECT_EQ(limiter.Admit("a.cc", 1, start), 0u);
  EXPECT_EQ(limiter.Admit("a.cc", 1, start), std::nullopt);
  EXPECT_EQ(limiter.Admit("a.cc", 1, start + absl::Seconds(9)), std::nullopt);
  EXPECT_EQ(limiter.Admit("a.cc", 2, start), 0u);
  EXPECT_EQ(limiter.Admit("b.cc", 1, start), 0u);
  EXPECT_EQ(limiter.Admit("a.cc", 1, start + absl::Seconds(10)), 2u);
  EXPECT_EQ(limiter.Admit("a.cc", 1, start + absl::Seconds(11)), std::nullopt);
  EXPECT_EQ(limiter.Admit("a.cc", 1, start + absl::Seconds(30)), 1u);
  EXPECT_EQ(limiter.Admit("a.cc", 1, start + absl::Seconds(50)), 0u);
}

}  // namespace
}  // namespace kvcompress
