#include "server/net/memory_guard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "server/net/address.h"
#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

// A TCP connection within this process: {the client's end, the server's}.
std::array<int, 2> Connection() {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  EXPECT_EQ(bind(listener, reinterpret_cast<const sockaddr*>(&address), size), 0);
  EXPECT_EQ(listen(listener, 1), 0);
  EXPECT_EQ(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size), 0);
  const int client = socket(AF_INET, SOCK_STREAM, 0);
  EXPECT_EQ(connect(client, reinterpret_cast<const sockaddr*>(&address), size), 0);
  const int server = accept(listener, nullptr, nullptr);
  close(listener);
  return {client, server};
}

void Send(int fd, size_t count) {
  const std::string bytes(count, 'x');
  EXPECT_EQ(send(fd, bytes.data(), bytes.size(), 0), static_cast<ssize_t>(count));
}

TEST(MemoryGuardTest, ClosesTheConnectionWithTheMostThatNoCallHasGot) {
  const auto [guilty_client, guilty] = Connection();
  const auto [busy_client, busy] = Connection();
  Send(guilty_client, 100'000);  // counts, whenever the guard looks first
  absl::Notification closed;
  std::string peer;
  uint64_t bytes = 0;
  MemoryGuard guard({.limit = 0, .on_close = [&](const std::string& of, uint64_t outstanding) {
                       if (closed.HasBeenNotified()) return;
                       peer = of;
                       bytes = outstanding;
                       closed.Notify();
                     }});
  ASSERT_THAT(guard.Start(), testing::IsOk());
  guard.Add(busy, "ipv4:127.0.0.1:2");
  for (int i = 0; i < 25; ++i) {
    Send(busy_client, 8000);
    MemoryGuard::Count(*guard.DeliveredTo("ipv4:127.0.0.1:2"), 8000);
  }
  guard.Add(guilty, "ipv4:127.0.0.1:1");
  closed.WaitForNotification();
  EXPECT_EQ(peer, "ipv4:127.0.0.1:1");
  EXPECT_NEAR(static_cast<double>(bytes), 100'000, 10'000);
  char byte;
  EXPECT_EQ(recv(guilty_client, &byte, 1, 0), 0);
  EXPECT_EQ(recv(busy_client, &byte, 1, MSG_DONTWAIT), -1);
  for (const int fd : {guilty_client, guilty, busy_client, busy}) close(fd);
}

TEST(MemoryGuardTest, BelowTheLimitNothingIsClosed) {
  const auto [client, server] = Connection();
  MemoryGuard guard({.limit = uint64_t{1} << 40, .on_close = [](const std::string&, uint64_t) { FAIL(); }});
  ASSERT_THAT(guard.Start(), testing::IsOk());
  guard.Add(server, "ipv4:127.0.0.1:1");
  Send(client, 100'000);
  absl::SleepFor(absl::Milliseconds(200));
  char byte;
  EXPECT_EQ(recv(client, &byte, 1, MSG_DONTWAIT), -1);
  close(client);
  close(server);
}

TEST(MemoryGuardTest, CallsOfUnknownPeersAreCountedNowhere) {
  MemoryGuard guard({.limit = uint64_t{1} << 40});
  MemoryGuard::Count(*guard.DeliveredTo("unix:"), 1);
  EXPECT_NE(guard.DeliveredTo("unix:"), nullptr);
}

TEST(PeerOfTest, IsWhatGrpcWrites) {
  EXPECT_EQ(PeerOf({"10.0.0.1", "2"}), "ipv4:10.0.0.1:2");
  EXPECT_EQ(PeerOf({"2001:db8::1", "2"}), "ipv6:%5B2001:db8::1%5D:2");
  EXPECT_EQ(ClientOfPeer(PeerOf({"2001:db8::1", "2"})), ClientOfHost("2001:db8::1"));
}

}  // namespace
}  // namespace kvcompress
