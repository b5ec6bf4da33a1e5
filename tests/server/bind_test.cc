#include "kvcompress/server/bind.h"

#include <gtest/gtest.h>

namespace kvcompress {
namespace {

TEST(BindTest, AddressesAreTakenApartAndPutTogether) {
  EXPECT_EQ(SplitAddress("localhost:80").host, "localhost");
  EXPECT_EQ(SplitAddress("localhost:80").port, "80");
  EXPECT_EQ(SplitAddress("[::1]:80").host, "::1");
  EXPECT_EQ(JoinAddress("::1", 80), "[::1]:80");
  EXPECT_EQ(JoinAddress("10.0.0.1", 80), "10.0.0.1:80");
}

TEST(BindTest, Loopback) {
  for (const char* address : {"127.0.0.1:1", "127.8.8.8:1", "localhost:1", "[::1]:1"}) {
    EXPECT_TRUE(IsLoopback(address)) << address;
  }
  for (const char* address : {"0.0.0.0:1", "[::]:1", "10.0.0.1:1", "example.org:1", "1.127.0.0:1"}) {
    EXPECT_FALSE(IsLoopback(address)) << address;
  }
}

TEST(BindTest, TheReasonIsTheSystems) { EXPECT_EQ(WhyNotBound("203.0.113.1:0"), "cannot assign requested address"); }

}  // namespace
}  // namespace kvcompress
