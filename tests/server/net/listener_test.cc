#include "server/net/listener.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <latch>
#include <optional>
#include <thread>
#include <vector>

#include "server/net/address.h"
#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

using testing::IsOk;
using testing::StatusIs;

constexpr mode_t kMode = 0660;

// A path of this process's own, without a file.
std::string FreshPath() {
  std::string path = ::testing::TempDir() + "kvc_listener_test." + std::to_string(getpid());
  unlink(path.c_str());
  return path;
}

bool Exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

// Leaves a socket at `path` that nobody listens on.
void LeaveSocket(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  ASSERT_EQ(bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  close(fd);
}

TEST(ListenerTest, ASocketIsReplacedOnlyWhenNobodyAnswers) {
  const std::string path = FreshPath();
  const std::string address = "unix:" + path;
  const auto in_use = StatusIs(absl::StatusCode::kUnavailable, "listen on " + address + ": address already in use");
  LeaveSocket(path);
  {
    const absl::StatusOr<Listener> listener = Listener::Open(address, kMode);
    ASSERT_THAT(listener, IsOk());
    EXPECT_EQ(listener->address(), address);
    EXPECT_THAT(Listener::Open(address, kMode), in_use);
    EXPECT_TRUE(Exists(path));
  }
  EXPECT_FALSE(Exists(path)) << "it goes with its listener";
  std::ofstream(path) << "somebody's";
  EXPECT_THAT(Listener::Open(address, kMode), in_use);
  EXPECT_TRUE(Exists(path));
  unlink(path.c_str());
}

TEST(ListenerTest, OfManyThatFindAStaleSocketOneListens) {
  const std::string path = FreshPath();
  for (int i = 0; i < 1000; ++i) {
    LeaveSocket(path);
    std::optional<absl::StatusOr<Listener>> listeners[4];
    std::latch start(4);
    std::vector<std::thread> threads;
    for (auto& listener : listeners) {
      threads.emplace_back([&] {
        start.arrive_and_wait();
        listener.emplace(Listener::Open("unix:" + path, kMode));
      });
    }
    for (std::thread& thread : threads) thread.join();
    const auto listens = [](const auto& listener) { return listener->ok(); };
    ASSERT_EQ(std::count_if(std::begin(listeners), std::end(listeners), listens), 1) << "attempt " << i;
  }
}

TEST(ListenerTest, ASocketThatTookTheFilesPlaceStays) {
  const std::string path = ::testing::TempDir() + "listener_successor";
  absl::StatusOr<Listener> first = Listener::Open("unix:" + path, kMode);
  ASSERT_THAT(first, IsOk());
  ASSERT_EQ(unlink(path.c_str()), 0);
  const absl::StatusOr<Listener> second = Listener::Open("unix:" + path, kMode);
  ASSERT_THAT(second, IsOk());
  first = absl::CancelledError();
  struct stat info;
  EXPECT_EQ(stat(path.c_str(), &info), 0);
}

TEST(ListenerTest, ModesHoldForASocket) {
  const std::string path = FreshPath();
  const mode_t before = umask(022);
  for (const mode_t mode : {0600u, 0660u, 0777u}) {
    const absl::StatusOr<Listener> listener = Listener::Open("unix:" + path, mode);
    ASSERT_THAT(listener, IsOk());
    struct stat info;
    ASSERT_EQ(stat(path.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, mode);
  }
  EXPECT_EQ(umask(before), 022u);
}

TEST(ListenerTest, ThePortThatTheSystemChose) {
  const absl::StatusOr<Listener> first = Listener::Open("127.0.0.1:0", kMode);
  ASSERT_THAT(first, IsOk());
  EXPECT_NE(SplitAddress(first->address()).port, "0");
  EXPECT_THAT(Listener::Open(first->address(), kMode),
              StatusIs(absl::StatusCode::kUnavailable, "listen on " + first->address() + ": address already in use"));
  const absl::StatusOr<Listener> all = Listener::Open("0.0.0.0:0", kMode);
  ASSERT_THAT(all, IsOk());
  EXPECT_EQ(all->sockets().size(), 1u);
}

TEST(ListenerTest, TheReasonIsTheSystems) {
  EXPECT_THAT(Listener::Open("203.0.113.1:0", kMode),
              StatusIs(absl::StatusCode::kUnavailable, "listen on 203.0.113.1:0: cannot assign requested address"));
  EXPECT_THAT(Listener::Open("unix:/no/such/folder/a", kMode),
              StatusIs(absl::StatusCode::kUnavailable, "listen on unix:/no/such/folder/a: no such file or directory"));
}

}  // namespace
}  // namespace kvcompress
