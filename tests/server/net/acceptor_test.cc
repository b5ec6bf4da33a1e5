#include "server/net/acceptor.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <string>

#include "absl/time/clock.h"
#include "server/net/address.h"
#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

using testing::IsOk;

// A connection from `host`, 127.0.0.x, to a port of 127.0.0.1.
int Connect(const std::string& address, const char* host) {
  sockaddr_in from{};
  from.sin_family = AF_INET;
  inet_pton(AF_INET, host, &from.sin_addr);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(std::stoi(SplitAddress(address).port)));
  inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  EXPECT_EQ(bind(fd, reinterpret_cast<const sockaddr*>(&from), sizeof(from)), 0);
  EXPECT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof(to)), 0);
  return fd;
}

// Whether the other side has closed the connection, which it does at once or never.
bool IsClosed(int fd) {
  char byte;
  return recv(fd, &byte, 1, 0) == 0;
}

class AcceptorTest : public ::testing::Test {
 protected:
  void Start(size_t all, size_t per_client, const std::string& address = "127.0.0.1:0") {
    acceptor_ = std::make_unique<Acceptor>(Acceptor::Options{
        .max_connections = all, .max_connections_per_client = per_client, .on_reject = [this] { ++rejected_; }});
    absl::StatusOr<Listener> listener = Listener::Open(address, 0600);
    ASSERT_THAT(listener, IsOk());
    address_ = listener->address();
    acceptor_->Add(*std::move(listener), [this](int fd) {
      absl::MutexLock lock(&mutex_);
      taken_.push_back(fd);
    });
    ASSERT_TRUE(acceptor_->Start().ok());
  }

  // The connections that were accepted, once there are so many.
  std::vector<int> Taken(size_t count) {
    absl::MutexLock lock(&mutex_);
    const auto enough = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return taken_.size() >= count; };
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&enough), absl::Seconds(20)));
    return taken_;
  }

  absl::Mutex mutex_;
  std::vector<int> taken_ ABSL_GUARDED_BY(mutex_);
  std::atomic<int> rejected_ = 0;
  std::string address_;
  std::unique_ptr<Acceptor> acceptor_;  // last: its thread uses what is above
};

TEST_F(AcceptorTest, OneClientLeavesRoomForOthers) {
  Start(3, 2);
  const int first = Connect(address_, "127.0.0.1");
  const int second = Connect(address_, "127.0.0.1");
  Taken(2);
  EXPECT_TRUE(IsClosed(Connect(address_, "127.0.0.1")));
  const int other = Connect(address_, "127.0.0.2");
  const std::vector<int> taken = Taken(3);
  EXPECT_TRUE(IsClosed(Connect(address_, "127.0.0.3"))) << "there are three";
  EXPECT_EQ(acceptor_->connections(), 3u);
  EXPECT_EQ(rejected_, 2);

  // The receiver closes them, and their descriptors' numbers may belong to other files at once.
  close(taken[0]);
  const int reused = dup(STDIN_FILENO);
  EXPECT_EQ(reused, taken[0]);
  EXPECT_EQ(acceptor_->connections(), 2u);
  const int again = Connect(address_, "127.0.0.1");
  Taken(4);
  EXPECT_TRUE(IsClosed(Connect(address_, "127.0.0.1")));
  for (const int fd : {first, second, other, again, reused}) close(fd);
}

TEST_F(AcceptorTest, GoesOnWhenDescriptorsRunOut) {
  Start(1000, 1000);
  const int client = Connect(address_, "127.0.0.1");
  close(Taken(1)[0]);
  close(client);
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const int waiting = Connect(address_, "127.0.0.1");  // its own descriptor is there already
  Taken(2);
  const int next = socket(AF_INET, SOCK_STREAM, 0);
  const rlimit none = {.rlim_cur = 3, .rlim_max = before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(std::stoi(SplitAddress(address_).port)));
  inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
  EXPECT_EQ(connect(next, reinterpret_cast<const sockaddr*>(&to), sizeof(to)), 0);
  absl::SleepFor(absl::Milliseconds(300));
  {
    absl::MutexLock lock(&mutex_);
    EXPECT_EQ(taken_.size(), 2u);
  }
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  Taken(3);
  close(waiting);
  close(next);
}

TEST_F(AcceptorTest, AUnixSocketTakesAResponseWhole) {
  sockaddr_un to{};
  to.sun_family = AF_UNIX;
  const std::string path = ::testing::TempDir() + "kvc_acceptor_test." + std::to_string(getpid());
  path.copy(to.sun_path, sizeof(to.sun_path) - 1);
  Start(10, 10, "unix:" + path);
  const int client = socket(AF_UNIX, SOCK_STREAM, 0);
  ASSERT_EQ(connect(client, reinterpret_cast<const sockaddr*>(&to), sizeof(to)), 0);
  const std::string response((256 << 10) + 4096, 'r');
  EXPECT_EQ(send(Taken(1)[0], response.data(), response.size(), MSG_DONTWAIT), static_cast<ssize_t>(response.size()));
  close(client);
}

TEST_F(AcceptorTest, StopsListening) {
  Start(10, 10);
  acceptor_->Stop();
  const absl::StatusOr<Listener> next = Listener::Open(address_, 0600);
  EXPECT_THAT(next, IsOk());
}

}  // namespace
}  // namespace kvcompress
