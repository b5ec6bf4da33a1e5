#include "server/net/metrics_page.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "server/net/address.h"
#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using testing::IsOk;
using ::testing::StartsWith;
using testing::StatusIs;

constexpr char kRequest[] = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
constexpr char kOk[] = "HTTP/1.1 200 OK\r\n";

class MetricsPageTest : public ::testing::Test {
 protected:
  void SetUp() override { Start(absl::Seconds(60)); }
  void TearDown() override {
    for (const int fd : open_) close(fd);
  }

  void Start(absl::Duration patience) {
    page_.reset();
    absl::StatusOr<std::unique_ptr<MetricsPage>> page = MetricsPage::Start(
        "127.0.0.1:0", [this] { return ++asked_, text_; }, patience);
    ASSERT_THAT(page, IsOk());
    page_ = *std::move(page);
  }

  // A connection from this address of the machine.
  int Connect(const char* from = "127.0.0.1") {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    inet_pton(AF_INET, from, &address.sin_addr);
    EXPECT_EQ(bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    address.sin_port = htons(static_cast<uint16_t>(std::stoi(SplitAddress(page_->address()).port)));
    EXPECT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    open_.push_back(fd);
    return fd;
  }

  static void Write(int fd, std::string_view text) {
    EXPECT_EQ(send(fd, text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
  }

  // What comes until the connection is closed.
  static std::string ReadAll(int fd) {
    std::string all;
    char bytes[4096];
    for (ssize_t got = 0; (got = recv(fd, bytes, sizeof(bytes), 0)) > 0;) all.append(bytes, static_cast<size_t>(got));
    return all;
  }

  std::string Ask(std::string_view request, const char* from = "127.0.0.1") {
    const int fd = Connect(from);
    Write(fd, request);
    return ReadAll(fd);
  }

  // Whether the other side closes it within so many seconds.
  static bool IsClosed(int fd, int seconds) {
    pollfd event{fd, POLLIN, 0};
    char byte = 0;
    return poll(&event, 1, seconds * 1000) == 1 && recv(fd, &byte, 1, 0) <= 0;
  }

  std::string text_ = "a_metric 1\n";
  std::atomic<int> asked_ = 0;
  std::unique_ptr<MetricsPage> page_;
  std::vector<int> open_;
};

TEST_F(MetricsPageTest, AnswersRequests) {
  const std::string answer = Ask(kRequest);
  EXPECT_THAT(answer, StartsWith(kOk));
  EXPECT_THAT(answer, HasSubstr("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
  EXPECT_THAT(answer, HasSubstr("\r\nContent-Length: 11\r\n"));
  EXPECT_THAT(answer, EndsWith("\r\n\r\na_metric 1\n"));
  EXPECT_THAT(Ask("GET /metrics?name=x HTTP/1.0\r\n\r\n"), StartsWith(kOk));
  EXPECT_EQ(asked_, 2);
  EXPECT_THAT(Ask("HEAD /metrics HTTP/1.1\r\n\r\n"), EndsWith("\r\nConnection: close\r\n\r\n"));
}

TEST_F(MetricsPageTest, AnswersLargePages) {
  text_ = std::string(8 << 20, 'x');
  EXPECT_THAT(Ask(kRequest), EndsWith("\r\n\r\n" + text_));
}

TEST_F(MetricsPageTest, RefusesWhatIsNoRequestForThePage) {
  EXPECT_THAT(Ask("GET / HTTP/1.1\r\n\r\n"), StartsWith("HTTP/1.1 404 "));
  EXPECT_THAT(Ask("GET /metrics/../etc/passwd HTTP/1.1\r\n\r\n"), StartsWith("HTTP/1.1 404 "));
  EXPECT_THAT(Ask("POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"), StartsWith("HTTP/1.1 405 "));
  EXPECT_THAT(Ask("GET /metrics\r\n\r\n"), StartsWith("HTTP/1.1 400 "));
  EXPECT_THAT(Ask("\r\n\r\n"), StartsWith("HTTP/1.1 400 "));
  EXPECT_THAT(Ask(std::string("\0\xff \1 HTTP/1.1\r\n\r\n", 17)), StartsWith("HTTP/1.1 405 "));
  EXPECT_THAT(Ask("GET /metrics HTTP/1.1\r\nX: " + std::string(1 << 20, 'a')), StartsWith("HTTP/1.1 431 "));
  EXPECT_EQ(asked_, 0);
}

TEST_F(MetricsPageTest, ARequestComesInPieces) {
  const int fd = Connect();
  for (const char c : std::string(kRequest)) Write(fd, std::string(1, c));
  EXPECT_THAT(ReadAll(fd), StartsWith(kOk));
}

TEST_F(MetricsPageTest, HalfARequestMakesNobodyWait) {
  for (int i = 0; i < 16; ++i) Write(Connect(), "GET /metrics HTTP/1.1\r\n");
  EXPECT_THAT(Ask(kRequest), StartsWith(kOk));
}

TEST_F(MetricsPageTest, IdleConnectionsMakeNobodyWait) {
  for (int i = 0; i < 500; ++i) Connect();
  EXPECT_THAT(Ask(kRequest), StartsWith(kOk));
}

TEST_F(MetricsPageTest, WhoDoesNotReadMakesNobodyWait) {
  text_ = std::string(8 << 20, 'x');
  for (int i = 0; i < 100; ++i) Write(Connect(), kRequest);
  EXPECT_THAT(Ask(kRequest), StartsWith(kOk));
}

TEST_F(MetricsPageTest, AClientWithManyConnectionsPushesOutItsOwn) {
  const int other = Connect("127.0.0.2");
  Write(other, "GET /metrics HTTP/1.1\r\n");
  const int first = Connect();
  for (size_t i = 0; i < 3 * MetricsPage::kMaxConnections; ++i) Connect();
  EXPECT_TRUE(IsClosed(first, 10));
  Write(other, "\r\n");
  EXPECT_THAT(ReadAll(other), StartsWith(kOk));
}

TEST_F(MetricsPageTest, AConnectionHasSoMuchTime) {
  Start(absl::Milliseconds(200));
  const absl::Time begin = absl::Now();
  const int idle = Connect();
  const int half = Connect();
  Write(half, "GET /metrics HTTP/1.1\r\n");
  EXPECT_TRUE(IsClosed(idle, 10));
  EXPECT_TRUE(IsClosed(half, 10));
  EXPECT_GE(absl::Now() - begin, absl::Milliseconds(190));
}

TEST_F(MetricsPageTest, AnAddressInUseIsAnError) {
  EXPECT_THAT(MetricsPage::Start(page_->address(), [] { return std::string(); }),
              StatusIs(absl::StatusCode::kUnavailable, EndsWith(": address already in use")));
}

}  // namespace
}  // namespace kvcompress
