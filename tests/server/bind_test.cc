#include "kvcompress/server/bind.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <fstream>

#include "kvcompress/testing/status_matchers.h"

namespace kvcompress {
namespace {

using testing::IsOk;
using testing::StatusIs;

// A path of this process's own, with nothing there.
std::string FreshPath() {
  std::string path = ::testing::TempDir() + "kvc_bind_test." + std::to_string(getpid());
  unlink(path.c_str());
  return path;
}

// A socket that listens at `path`.
int Listen(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  EXPECT_EQ(bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  EXPECT_EQ(listen(fd, 1), 0);
  return fd;
}

TEST(BindTest, AddressesAreTakenApartAndPutTogether) {
  EXPECT_EQ(SplitAddress("localhost:80").host, "localhost");
  EXPECT_EQ(SplitAddress("localhost:80").port, "80");
  EXPECT_EQ(SplitAddress("[::1]:80").host, "::1");
  EXPECT_EQ(JoinAddress("::1", 80), "[::1]:80");
  EXPECT_EQ(JoinAddress("10.0.0.1", 80), "10.0.0.1:80");
}

TEST(BindTest, Loopback) {
  for (const char* address : {"127.0.0.1:1", "127.8.8.8:1", "localhost:1", "[::1]:1", "unix:/a:b"}) {
    EXPECT_TRUE(IsLoopback(address)) << address;
  }
  for (const char* address : {"0.0.0.0:1", "[::]:1", "10.0.0.1:1", "example.org:1", "1.127.0.0:1"}) {
    EXPECT_FALSE(IsLoopback(address)) << address;
  }
}

TEST(BindTest, UnixAddresses) {
  EXPECT_TRUE(IsUnixAddress("unix:/a"));
  EXPECT_FALSE(IsUnixAddress("unixhost:1"));
  EXPECT_EQ(UnixPath("unix:/a/b"), "/a/b");
  EXPECT_EQ(UnixPath("unix:///a/b"), "/a/b");
  EXPECT_EQ(UnixPath("unix:a"), "a");
  EXPECT_EQ(WhyNotBound("unix:/no/such/folder/a"), "no such file or directory");
}

TEST(BindTest, ASocketIsReplacedOnlyWhenNobodyAnswers) {
  const std::string path = FreshPath();
  EXPECT_THAT(RemoveStaleSocket("unix:" + path), IsOk());
  const int fd = Listen(path);
  const auto in_use = StatusIs(absl::StatusCode::kUnavailable, "listen on unix:" + path + ": address already in use");
  EXPECT_THAT(RemoveStaleSocket("unix:" + path), in_use);
  EXPECT_EQ(access(path.c_str(), F_OK), 0);
  close(fd);
  EXPECT_THAT(RemoveStaleSocket("unix:" + path), IsOk());
  EXPECT_NE(access(path.c_str(), F_OK), 0);

  std::ofstream(path) << "somebody's";
  EXPECT_THAT(RemoveStaleSocket("unix:" + path), in_use);
  EXPECT_EQ(access(path.c_str(), F_OK), 0);
  unlink(path.c_str());
}

TEST(BindTest, ModesHoldForASocketFromItsBeginning) {
  const std::string path = FreshPath();
  const mode_t before = umask(022);
  for (const mode_t mode : {0600u, 0660u, 0777u}) {
    const ScopedMode scoped(mode);
    close(Listen(path));
    struct stat info;
    ASSERT_EQ(stat(path.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, mode);
    unlink(path.c_str());
  }
  EXPECT_EQ(umask(before), 022u);
}

TEST(BindTest, TheReasonIsTheSystems) { EXPECT_EQ(WhyNotBound("203.0.113.1:0"), "cannot assign requested address"); }

}  // namespace
}  // namespace kvcompress
