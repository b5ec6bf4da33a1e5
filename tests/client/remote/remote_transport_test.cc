#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>

#include "client/remote/channel.h"
#include "client/remote/exchange.h"
#include "tests/client/remote/fake_daemon.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT
using ::testing::HasSubstr;

// Reads into the scratch, as files do.
class CopyingSource final : public ByteSource {
 public:
  explicit CopyingSource(ByteSpan bytes) : bytes_(bytes) {}
  uint64_t size() const override { return bytes_.size(); }
  absl::StatusOr<ByteSpan> Get(uint64_t offset, size_t count, std::vector<std::byte>& scratch) const override {
    const ByteSpan part = bytes_.subspan(offset, count);
    scratch.assign(part.begin(), part.end());
    return ByteSpan(scratch);
  }

 private:
  const ByteSpan bytes_;
};

std::vector<grpc::Slice> SlicesOf(const grpc::ByteBuffer& message) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(message.Dump(&slices).ok());
  return slices;
}

const std::byte* Begin(const grpc::Slice& slice) { return reinterpret_cast<const std::byte*>(slice.begin()); }

// The largest buffer of the unix sockets that this process could send by.
int LargestSendBuffer() {
  int largest = 0;
  for (int fd = 0; fd < 1024; ++fd) {
    int domain = 0;
    int bytes = 0;
    socklen_t size = sizeof(int);
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) != 0 || domain != AF_UNIX) continue;
    EXPECT_EQ(getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, &size), 0);
    largest = std::max(largest, bytes);
  }
  return largest;
}

TEST(ChannelTest, AUnixSocketHoldsMoreThanTheSystemsSize) {
  FakeDaemon daemon("unix:" + ::testing::TempDir() + "kvc_channel_test." + std::to_string(getpid()));
  const int before = LargestSendBuffer();  // of the socket that the daemon listens on
  ASSERT_GT(before, 0);
  const absl::StatusOr<ChannelTarget> target = ParseAddress(daemon.address());
  ASSERT_THAT(target, IsOk());
  const std::shared_ptr<grpc::Channel> channel = MakeChannel(*target, {});
  ASSERT_TRUE(channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(20)));
  EXPECT_GE(LargestSendBuffer(), std::min(2 * before, 1 << 20));
}

TEST(SliceReaderTest, WaitsForWhoeverHoldsTheCallersMemory) {
  const std::vector<std::byte> bytes(100);
  const MemorySource source{ByteSpan(bytes)};
  SliceReader reader;
  EXPECT_TRUE(reader.WaitUntilReleased(absl::Now()));
  auto slice = std::make_unique<Slice>(*reader.Read(source, 10, 20));
  EXPECT_EQ(slice->bytes.data(), bytes.data() + 10);
  EXPECT_EQ(slice->bytes.size(), 20u);
  EXPECT_FALSE(reader.WaitUntilReleased(absl::Now()));
  std::thread releaser([&] { slice.reset(); });
  EXPECT_TRUE(reader.WaitUntilReleased(absl::InfiniteFuture()));
  releaser.join();
}

TEST(SliceReaderTest, BuffersOfFilesAreUsedAgainWhenNobodyHoldsThem) {
  const std::vector<std::byte> bytes = MakeBits(1000);
  const CopyingSource source{bytes};
  SliceReader reader;
  const std::byte* first = nullptr;
  {
    const absl::StatusOr<Slice> one = reader.Read(source, 0, 100);
    const absl::StatusOr<Slice> two = reader.Read(source, 100, 100);
    first = one->bytes.data();
    EXPECT_NE(first, two->bytes.data());
    EXPECT_TRUE(std::ranges::equal(one->bytes, ByteSpan(bytes).first(100)));
    // Nothing of the source's own is held.
    EXPECT_TRUE(reader.WaitUntilReleased(absl::Now()));
  }
  EXPECT_EQ(reader.Read(source, 200, 100)->bytes.data(), first);
}

TEST(SliceReaderTest, SlicesOfFilesOutliveTheReader) {
  const std::vector<std::byte> bytes = MakeBits(1000);
  const CopyingSource source{bytes};
  auto reader = std::make_unique<SliceReader>();
  const absl::StatusOr<Slice> slice = reader->Read(source, 0, 1000);
  reader.reset();
  EXPECT_TRUE(std::ranges::equal(slice->bytes, bytes));
}

// A sink that remembers where the bytes stood.
struct Places final : CompressSink {
  absl::Status OnFrame(ByteSpan bytes) override {
    spans.push_back(bytes);
    return absl::OkStatus();
  }
  absl::Status OnTensor(const TensorReport&) override { return absl::OkStatus(); }

  std::vector<ByteSpan> spans;
};

class ExchangeTest : public ::testing::Test {
 protected:
  std::vector<std::byte> values_ = MakeValues(DType::kF16, 1500000, Distribution::kGaussian);
  MemorySource source_{ByteSpan(values_)};
  const CompressJob job_{MakeTensor("t", DType::kF16, {values_.size() / 2}), "int4", &source_};
  SliceReader slices_;
  Delivery delivery_;
  Places places_;
};

TEST_F(ExchangeTest, MessagesReferToTheCallersMemory) {
  ByteExchange<CompressReplies> exchange("a", std::span(&job_, 1), absl::InfiniteFuture(), places_, delivery_, slices_);
  const auto header = exchange.Next();
  ASSERT_THAT(header, IsOk());
  EXPECT_TRUE((*header)->followed);
  EXPECT_FALSE((*header)->last);
  for (size_t at = 0; at < values_.size(); at += kMaxPayloadBytes) {
    const auto next = exchange.Next();
    ASSERT_THAT(next, IsOk());
    const std::vector<grpc::Slice> slices = SlicesOf((*next)->message);
    ASSERT_EQ(slices.size(), 2u);
    EXPECT_EQ(Begin(slices[1]), values_.data() + at);
    EXPECT_EQ((*next)->last, at + kMaxPayloadBytes >= values_.size());
    EXPECT_EQ((*next)->followed, !(*next)->last);
  }
}

TEST_F(ExchangeTest, ATensorWithoutBytesIsOneMessage) {
  const MemorySource nothing{ByteSpan()};
  const CompressJob job{MakeTensor("t", DType::kF16, {0}), "int4", &nothing};
  ByteExchange<CompressReplies> exchange("a", std::span(&job, 1), absl::InfiniteFuture(), places_, delivery_, slices_);
  const auto header = exchange.Next();
  ASSERT_THAT(header, IsOk());
  EXPECT_TRUE((*header)->last);
}

TEST_F(ExchangeTest, TheSinkSeesTheReceivedSlicesThemselves) {
  Frames frames;
  ASSERT_THAT(MakeLocalClient(1)->Compress(std::span(&job_, 1), absl::InfiniteFuture(), frames), IsOk());
  ByteExchange<CompressReplies> exchange("a", std::span(&job_, 1), absl::InfiniteFuture(), places_, delivery_, slices_);
  const ByteSpan frame = AsBytes(frames.frame);
  const ByteSpan parts[] = {frame.first(1000), frame.subspan(1000, 5000), frame.subspan(6000)};
  const auto owner = std::make_shared<int>();
  ASSERT_THAT(exchange.Take(PayloadMessage(CompressDirection::kOutput, {{parts[0], owner}, {parts[1], owner}})),
              IsOk());
  ASSERT_THAT(exchange.Take(PayloadMessage(CompressDirection::kOutput, {{parts[2], owner}})), IsOk());
  ASSERT_EQ(places_.spans.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(places_.spans[i].data(), parts[i].data());
    EXPECT_EQ(places_.spans[i].size(), parts[i].size());
  }
}

TEST_F(ExchangeTest, MessagesThatCannotBeParsedAreRefused) {
  ByteExchange<CompressReplies> exchange("a", std::span(&job_, 1), absl::InfiniteFuture(), places_, delivery_, slices_);
  const grpc::Slice garbage("\xff\xff\xff\xff");
  EXPECT_THAT(exchange.Take(grpc::ByteBuffer(&garbage, 1)),
              StatusIs(absl::StatusCode::kInternal, "daemon a: its message cannot be parsed"));
}

TEST(ParseAddressTest, FormsOfTargets) {
  const auto uri = [](std::string_view address) {
    const absl::StatusOr<ChannelTarget> target = ParseAddress(address);
    EXPECT_THAT(target, IsOk());
    return target.ok() ? absl::StrFormat("%s %d %d", target->uri, target->spread, target->local) : "";
  };
  EXPECT_EQ(uri("host:1"), "dns:///host:1 0 0");
  EXPECT_EQ(uri("localhost:1"), "dns:///localhost:1 0 1");
  EXPECT_EQ(uri("127.0.0.1:1"), "ipv4:127.0.0.1:1 0 1");
  EXPECT_EQ(uri("10.0.0.1:1,10.0.0.2:1"), "ipv4:10.0.0.1:1,10.0.0.2:1 1 0");
  EXPECT_EQ(uri("127.0.0.1:1,10.0.0.2:1"), "ipv4:127.0.0.1:1,10.0.0.2:1 1 0");
  EXPECT_EQ(uri("[::1]:1,[::1]:2"), "ipv6:[::1]:1,[::1]:2 1 1");
  EXPECT_EQ(uri("unix:/a/b"), "unix:/a/b 0 1");
  EXPECT_EQ(uri("unix:a,unix:/b"), "unix:a,/b 1 1");
  EXPECT_EQ(uri("dns:///host:1"), "dns:///host:1 1 0");
}

TEST(ParseAddressTest, ListsThatCannotStandTogether) {
  for (const char* address : {"a:1,b:1", "127.0.0.1:1,b:1", "127.0.0.1:1,[::1]:1", "unix:/a,127.0.0.1:1"}) {
    EXPECT_THAT(ParseAddress(address), StatusIs(absl::StatusCode::kInvalidArgument,
                                                HasSubstr("mixes addresses that cannot stand in one list")));
  }
  for (const char* address : {"127.0.0.1:1,", ",", "unix:", "unix:/a,unix:", "dns:"}) {
    EXPECT_THAT(ParseAddress(address), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("use HOST:PORT")));
  }
}

TEST(ParseAddressTest, APortThatNoDaemonCanHaveIsNamed) {
  for (const char* address : {"127.0.0.1:0", "127.0.0.1:65536", "localhost:99999999999999999999", "host:-1", "host:+1",
                              "host: 1", "[::1]:1x", "dns:///host:70000", "dns:host:0", "127.0.0.1:1,127.0.0.1:0"}) {
    EXPECT_THAT(ParseAddress(address), StatusIs(absl::StatusCode::kInvalidArgument,
                                                HasSubstr("the port must be a number from 1 to 65535, not \"")))
        << address;
  }
  EXPECT_THAT(ParseAddress("127.0.0.1:65535"), IsOk());
  EXPECT_THAT(ParseAddress("::1:50051"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("an IPv6 address stands in brackets")));
  for (const char* address : {"https://host:1", "grpc://127.0.0.1:50051", "https://host"}) {
    EXPECT_THAT(ParseAddress(address),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("use HOST:PORT or unix:PATH, without ")))
        << address;
  }
}

TEST(ParseAddressTest, ASocketPathThatTheSystemCannotHoldIsNamed) {
  const std::string longest = "unix:/" + std::string(106, 'a');
  EXPECT_THAT(ParseAddress(longest), IsOk());
  EXPECT_THAT(ParseAddress("unix://" + longest.substr(5)), IsOk());
  EXPECT_THAT(ParseAddress(longest + "a"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("the path of a unix socket has at most 107 bytes, and this one has 108")));
}

// Calls of one small tensor, which daemons refuse after they have counted them.
class AddressesTest : public ::testing::Test {
 protected:
  static grpc::Status Count(std::atomic<int>& calls) {
    ++calls;
    return {grpc::INVALID_ARGUMENT, "counted"};
  }

  absl::Status Call(CodecClient& client) {
    const CompressJob job{MakeTensor("t", DType::kF16, {50}), "int4", &source_};
    Frames frames;
    return client.Compress(std::span(&job, 1), absl::InfiniteFuture(), frames);
  }

  std::vector<std::byte> values_ = MakeValues(DType::kF16, 50, Distribution::kGaussian);
  MemorySource source_{ByteSpan(values_)};
};

TEST_F(AddressesTest, CallsAreSpreadOverAll) {
  std::atomic<int> calls[2] = {0, 0};
  FakeDaemon daemons[2];
  for (int i = 0; i < 2; ++i) {
    daemons[i].compress = [&, i](grpc::ServerContext&, CompressCall&) { return Count(calls[i]); };
  }
  const auto client = MakeRemoteClient({.address = daemons[0].address() + "," + daemons[1].address()});
  ASSERT_THAT(client, IsOk());
  const absl::Time limit = absl::Now() + absl::Seconds(30);
  // The second connection may come up after the first calls.
  while ((calls[0] == 0 || calls[1] == 0) && absl::Now() < limit) {
    EXPECT_THAT(Call(**client), StatusIs(absl::StatusCode::kInvalidArgument, "counted"));
  }
  const int before[2] = {calls[0], calls[1]};
  for (int i = 0; i < 10; ++i) Call(**client).IgnoreError();
  EXPECT_EQ(calls[0] - before[0], 5);
  EXPECT_EQ(calls[1] - before[1], 5);
}

TEST_F(AddressesTest, OneThatIsDeadIsPassedOver) {
  const Socket nobody(false);
  FakeDaemon alive;
  std::atomic<int> calls = 0;
  alive.compress = [&](grpc::ServerContext&, CompressCall&) { return Count(calls); };
  const auto client = MakeRemoteClient({.address = nobody.address() + "," + alive.address()});
  for (int i = 0; i < 5; ++i) EXPECT_THAT(Call(**client), StatusIs(absl::StatusCode::kInvalidArgument, "counted"));
  EXPECT_EQ(calls, 5);
}

TEST_F(AddressesTest, UnixSockets) {
  const auto folder = std::filesystem::temp_directory_path() / absl::StrFormat("kvc-client-%d", getpid());
  std::filesystem::create_directory(folder);
  {
    FakeDaemon daemon("unix:" + (folder / "socket").native());
    std::atomic<int> calls = 0;
    daemon.compress = [&](grpc::ServerContext&, CompressCall&) { return Count(calls); };
    EXPECT_THAT(Call(**MakeRemoteClient({.address = daemon.address()})),
                StatusIs(absl::StatusCode::kInvalidArgument, "counted"));
    EXPECT_EQ(calls, 1);
  }
  std::filesystem::remove_all(folder);
}

// A peer that says hello, gives all the room there is, and then reads nothing.
class StalledPeer {
 public:
  StalledPeer() : thread_([this] { Serve(); }) {}
  ~StalledPeer() {
    thread_.join();
    if (fd_ >= 0) close(fd_);
  }

  const std::string& address() const { return socket_.address(); }
  // Whether the connection ends, when it is read to its end.
  bool ReadToTheEnd() {
    char buffer[1 << 16];
    ssize_t count;
    while ((count = recv(fd_, buffer, sizeof(buffer), 0)) > 0) {
    }
    return count == 0 || errno == ECONNRESET;
  }

 private:
  void Serve() {
    fd_ = accept(socket_.fd(), nullptr, nullptr);
    // SETTINGS with an initial window and a largest frame; WINDOW_UPDATE of the connection.
    const char hello[] =
        "\0\0\x0c\x04\0\0\0\0\0"
        "\0\x04\x7f\xff\xff\xff"
        "\0\x05\0\xff\xff\xff"
        "\0\0\x04\x08\0\0\0\0\0"
        "\x7f\0\0\0";
    EXPECT_EQ(send(fd_, hello, sizeof(hello) - 1, MSG_NOSIGNAL), static_cast<ssize_t>(sizeof(hello) - 1));
  }

  Socket socket_{true};
  int fd_ = -1;
  std::thread thread_;
};

TEST(StalledPeerTest, TheCallEndsAndNothingReadsTheCallersMemoryAnyMore) {
  StalledPeer peer;
  const std::vector<std::byte> values(size_t{64} << 20);
  const MemorySource source{ByteSpan(values)};
  const CompressJob job{MakeTensor("t", DType::kF16, {values.size() / 2}), "int4", &source};
  Frames frames;
  auto client = MakeRemoteClient({.address = peer.address(),
                                  .keepalive_timeout = absl::Seconds(1),
                                  .retry = {.max_attempts = 1},
                                  .shared_memory = false});
  EXPECT_THAT((*client)->Compress(std::span(&job, 1), absl::Now() + absl::Seconds(1), frames),
              StatusIs(absl::StatusCode::kDeadlineExceeded, "deadline exceeded"));
  client->reset();
  EXPECT_TRUE(peer.ReadToTheEnd());
}

}  // namespace
}  // namespace kvcompress
