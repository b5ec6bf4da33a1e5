#include "client/remote/lasting_fault.h"

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netdb.h>

#include "absl/time/clock.h"

namespace {

thread_local int look_ups = 0;  // gRPC has threads for its own

}  // namespace

// In place of the C library's, for all of this program.
extern "C" int getaddrinfo(const char* host, const char* service, const addrinfo* hints, addrinfo** found) {
  static const auto real = reinterpret_cast<decltype(&getaddrinfo)>(dlsym(RTLD_NEXT, "getaddrinfo"));
  ++look_ups;
  return real(host, service, hints, found);
}

namespace kvcompress {
namespace {

TEST(LastingFaultTest, WhoHasNoTimeLeftLooksUpNoName) {
  RemoteOptions options;
  options.address = "localhost:1";
  options.tls.emplace();
  const int before = look_ups;
  EXPECT_EQ(LastingFault("failed to connect", options, absl::Now() + absl::Seconds(20)), "");
  EXPECT_EQ(look_ups, before + 1);
  EXPECT_EQ(LastingFault("failed to connect", options, absl::Now()), "");
  EXPECT_EQ(look_ups, before + 1);
}

// What needs none is said.
TEST(LastingFaultTest, WhoHasNoTimeLeftIsToldWhatGrpcSays) {
  RemoteOptions options;
  options.address = "name:1";
  EXPECT_EQ(LastingFault("Domain name not found", options, absl::Now()), "there is no host \"name\"");
}

}  // namespace
}  // namespace kvcompress
