#include "server/net/address.h"

#include <gtest/gtest.h>

namespace kvcompress {
namespace {

TEST(AddressTest, AddressesAreTakenApartAndPutTogether) {
  EXPECT_EQ(SplitAddress("localhost:80").host, "localhost");
  EXPECT_EQ(SplitAddress("localhost:80").port, "80");
  EXPECT_EQ(SplitAddress("[::1]:80").host, "::1");
  EXPECT_EQ(JoinAddress("::1", 80), "[::1]:80");
  EXPECT_EQ(JoinAddress("10.0.0.1", 80), "10.0.0.1:80");
}

TEST(AddressTest, Loopback) {
  for (const char* address : {"127.0.0.1:1", "127.8.8.8:1", "localhost:1", "[::1]:1", "unix:/a:b"}) {
    EXPECT_TRUE(IsLoopback(address)) << address;
  }
  for (const char* address :
       {"0.0.0.0:1", "[::]:1", "10.0.0.1:1", "example.org:1", "1.127.0.0:1", "127.example.org:1"}) {
    EXPECT_FALSE(IsLoopback(address)) << address;
  }
}

TEST(AddressTest, ClientsOfPeers) {
  EXPECT_EQ(ClientOfPeer("ipv4:10.0.0.1:23"), "10.0.0.1");
  EXPECT_EQ(ClientOfPeer("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:23"), "20010db800010002/64");
  EXPECT_EQ(ClientOfPeer("ipv6:%5B2001:db8:1:2::9%5D:24"), "20010db800010002/64");
  EXPECT_EQ(ClientOfPeer("ipv6:%5B2001:db8:1:3::9%5D:24"), "20010db800010003/64");
  EXPECT_EQ(ClientOfPeer("ipv6:%5Bfe80::1%25eth0%5D:23"), "fe80000000000000/64");
  EXPECT_EQ(ClientOfHost("fe80::1%eth0"), "fe80000000000000/64");
  for (const char* unknown : {"unix:", "unix:/a:b", "", ":", "ipv4:", "ipv4:x:1", "ipv6:%5B", "ipv6:nonsense:1"}) {
    EXPECT_EQ(ClientOfPeer(unknown), "") << unknown;
  }
}

TEST(AddressTest, UnixAddresses) {
  EXPECT_TRUE(IsUnixAddress("unix:/a"));
  EXPECT_FALSE(IsUnixAddress("unixhost:1"));
  EXPECT_EQ(UnixPath("unix:/a/b"), "/a/b");
  EXPECT_EQ(UnixPath("unix:///a/b"), "/a/b");
  EXPECT_EQ(UnixPath("unix:a"), "a");
}

}  // namespace
}  // namespace kvcompress
