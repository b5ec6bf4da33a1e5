#include <unistd.h>

#include "absl/time/clock.h"
#include "client/local_client.h"
#include "client/remote/remote_client.h"
#include "server/daemon.h"
#include "tests/interop/stock.h"

// Frames that are not whole, by every way to a daemon: each ends at once, and with the words of the codec in this
// process.
namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

constexpr size_t kChunk = size_t{1} << 20;

struct NoSink final : DecompressSink {
  absl::Status OnHeader(const TensorDesc&) override { return absl::OkStatus(); }
  absl::Status OnData(ByteSpan) override { return absl::OkStatus(); }
  absl::Status OnTensor(const TensorReport&) override {
    ++tensors;
    return absl::OkStatus();
  }
  int tensors = 0;
};

struct NoFrames final : CompressSink {
  absl::Status OnFrame(ByteSpan) override { return absl::OkStatus(); }
  absl::Status OnTensor(const TensorReport&) override { return absl::OkStatus(); }
};

struct Damaged {
  std::string what;
  std::string frame;
};

// What can happen to a frame's bytes on their way, as far as it is seen by their number or order.
std::vector<Damaged> DamagesOf(const std::string& frame) {
  const size_t size = frame.size();
  std::vector<Damaged> damages = {{"with a byte behind it", frame + "x"}, {"twice", frame + frame}};
  for (const size_t end : {size_t{0}, size_t{7}, size_t{100}, size / 2, size - 20, size - 1}) {
    damages.push_back({absl::StrFormat("cut at %d", end), frame.substr(0, end)});
  }
  for (const size_t at : {size_t{0}, size / 2 / kChunk * kChunk, (size - 1) / kChunk * kChunk}) {
    const std::string chunk = frame.substr(at, kChunk);
    damages.push_back({absl::StrFormat("cut at chunk %d", at / kChunk), frame.substr(0, at)});
    damages.push_back({absl::StrFormat("without chunk %d", at / kChunk), std::string(frame).erase(at, kChunk)});
    damages.push_back({absl::StrFormat("chunk %d twice", at / kChunk), std::string(frame).insert(at, chunk)});
  }
  return damages;
}

// The parameter is how the daemon is reached.
class DamagedFramesTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string way = GetParam();
    Options options;
    options.listen = {way == "unix" ? absl::StrFormat("unix:/tmp/kvc-damaged-%d", getpid()) : "127.0.0.1:0"};
    options.metrics_listen = "";
    options.threads = 2;
    options.shared_memory_prefix = absl::StrFormat("kvc-damaged-%d-", getpid());
    absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Start(options);
    ASSERT_THAT(daemon, IsOk());
    daemon_ = *std::move(daemon);
    absl::StatusOr<std::unique_ptr<CodecClient>> client =
        MakeRemoteClient({.address = daemon_->listen().front(), .shared_memory = way == "shared_memory"});
    ASSERT_THAT(client, IsOk());
    client_ = *std::move(client);
  }

  static std::string FrameOf(size_t elements, const std::string& codec) {
    const std::vector<std::byte> values = MakeValues(DType::kF16, elements, Distribution::kGaussian);
    const auto compressor = TensorCompressor::Create(MakeTensor(kName, DType::kF16, {elements}), codec);
    std::string frame(compressor->max_frame_bytes(), '\0');
    frame.resize(*compressor->Compress(values, {reinterpret_cast<std::byte*>(frame.data()), frame.size()}));
    return frame;
  }

  std::unique_ptr<Daemon> daemon_;
  std::unique_ptr<CodecClient> client_;
  std::unique_ptr<CodecClient> local_ = MakeLocalClient(2);
};

TEST_P(DamagedFramesTest, EndAtOnceAndSayWhatTheCodecSays) {
  const struct {
    size_t elements;
    const char* codec;
  } kinds[] = {{1000, "int4"}, {1'000'000, "raw"}, {6'000'000, "raw"}, {10'000'000, "int4"}};
  for (const auto& kind : kinds) {
    const std::string frame = FrameOf(kind.elements, kind.codec);
    const MemorySource whole(AsBytes(frame));
    for (const Damaged& damaged : DamagesOf(frame)) {
      const MemorySource source(AsBytes(damaged.frame));
      for (const auto& sources :
           std::vector<std::vector<const ByteSource*>>{{&source}, {&source, &whole}, {&whole, &source}}) {
        std::vector<DecompressJob> jobs;
        for (const ByteSource* one : sources) jobs.push_back({absl::StrFormat("t%d", jobs.size()), one});
        NoSink expected;
        const absl::Status status = local_->Decompress(jobs, absl::InfiniteFuture(), expected);
        EXPECT_TRUE(absl::IsDataLoss(status) || absl::IsInvalidArgument(status)) << status;
        NoSink sink;
        EXPECT_THAT(client_->Decompress(jobs, absl::Now() + absl::Seconds(20), sink),
                    StatusIs(status.code(), std::string(status.message())))
            << kind.codec << " of " << kind.elements << " values, " << damaged.what << ", of " << jobs.size();
        EXPECT_EQ(sink.tensors, expected.tensors);
      }
    }
  }
}

TEST_P(DamagedFramesTest, TensorsThatAreNotAsLargeAsTheyAreDescribed) {
  const std::vector<std::byte> values(24'000'002);
  const TensorDesc tensor = MakeTensor("t", DType::kF16, {12'000'000});
  for (const size_t size : {size_t{0}, size_t{100}, size_t{12'000'000}, size_t{23'999'999}, size_t{24'000'002}}) {
    const MemorySource source(ByteSpan(values).first(size));
    for (const char* codec : {"int4", "raw", "sparse(ratio=0.5)|int4"}) {
      const CompressJob job{tensor, codec, &source};
      NoFrames sink;
      const absl::Status status = local_->Compress({&job, 1}, absl::InfiniteFuture(), sink);
      EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
      EXPECT_THAT(client_->Compress({&job, 1}, absl::Now() + absl::Seconds(20), sink),
                  StatusIs(status.code(), std::string(status.message())))
          << codec << ", " << size;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ways, DamagedFramesTest, ::testing::Values("tcp", "unix", "shared_memory"),
                         [](const auto& way) { return std::string(way.param); });

}  // namespace
}  // namespace kvcompress
