#include "server/session/call_rates.h"

#include <gtest/gtest.h>

#include <chrono>
#include <string>

namespace kvcompress {
namespace {

using std::chrono::milliseconds;

class CallRatesTest : public ::testing::Test {
 protected:
  bool Takes(const std::string& client) { return rates_.Take(client, now_) == CallRates::Clock::duration::zero(); }

  CallRates rates_{10};
  CallRates::Clock::time_point now_{std::chrono::hours(1)};
};

TEST_F(CallRatesTest, ABurstIsOfOneSecondAndThenTheRateHolds) {
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(Takes("a")) << i;
  EXPECT_EQ(rates_.Take("a", now_), milliseconds(100));
  EXPECT_TRUE(Takes("b"));
  now_ += milliseconds(99);
  EXPECT_EQ(rates_.Take("a", now_), milliseconds(1));
  now_ += milliseconds(1);
  EXPECT_TRUE(Takes("a"));
  EXPECT_FALSE(Takes("a"));
  now_ += std::chrono::seconds(5);
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(Takes("a")) << i;
  EXPECT_FALSE(Takes("a"));
}

TEST_F(CallRatesTest, ARefusalCostsNothing) {
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(Takes("a"));
  for (int i = 0; i < 1000; ++i) EXPECT_FALSE(Takes("a"));
  now_ += milliseconds(100);
  EXPECT_TRUE(Takes("a"));
}

TEST_F(CallRatesTest, OneCallASecond) {
  CallRates slow(1);
  EXPECT_EQ(slow.Take("a", now_), milliseconds(0));
  EXPECT_EQ(slow.Take("a", now_ + milliseconds(400)), milliseconds(600));
  EXPECT_EQ(slow.Take("a", now_ + milliseconds(1000)), milliseconds(0));
}

TEST_F(CallRatesTest, QuietClientsAreForgotten) {
  for (int i = 0; i < 100'000; ++i) {
    EXPECT_TRUE(Takes(std::to_string(i)));
    now_ += milliseconds(1);
  }
  EXPECT_LE(rates_.clients(), 300u);
}

}  // namespace
}  // namespace kvcompress
