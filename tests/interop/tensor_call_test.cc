#include <grpcpp/grpcpp.h>

#include "client/remote/remote_client.h"
#include "kvcompress/v1/kvcompress.grpc.pb.h"
#include "server/daemon.h"
#include "tests/interop/stock.h"

// Our client and our daemon with tensors that are one message.
namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

struct FrameSink final : CompressSink {
  absl::Status OnFrame(ByteSpan bytes) override {
    frame += AsText(bytes);
    return absl::OkStatus();
  }
  absl::Status OnTensor(const TensorReport& report) override {
    reports.push_back(report);
    return absl::OkStatus();
  }
  std::string frame;
  std::vector<TensorReport> reports;
};

struct ValueSink final : DecompressSink {
  absl::Status OnHeader(const TensorDesc& header) override {
    tensor = header;
    return absl::OkStatus();
  }
  absl::Status OnData(ByteSpan bytes) override {
    values += AsText(bytes);
    return absl::OkStatus();
  }
  absl::Status OnTensor(const TensorReport& tensor_report) override {
    report = tensor_report;
    return absl::OkStatus();
  }
  TensorDesc tensor;
  std::string values;
  TensorReport report;
};

class TensorCallTest : public ::testing::Test {
 protected:
  void SetUp() override {
    Options options;
    options.listen = {"127.0.0.1:0"};
    options.metrics_listen = "";
    options.threads = 2;
    absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Start(options);
    ASSERT_THAT(daemon, IsOk());
    daemon_ = *std::move(daemon);
    absl::StatusOr<std::unique_ptr<CodecClient>> client = MakeRemoteClient({.address = daemon_->listen().front()});
    ASSERT_THAT(client, IsOk());
    client_ = *std::move(client);
  }

  absl::Status Compress(const TensorDesc& tensor, ByteSpan values, const std::string& codec, FrameSink& sink) {
    const MemorySource source(values);
    const CompressJob job{tensor, codec, &source};
    return client_->Compress({&job, 1}, absl::InfiniteFuture(), sink);
  }
  absl::Status Decompress(std::string_view frame, ValueSink& sink) {
    const MemorySource source(AsBytes(frame));
    const DecompressJob job{kName, &source};
    return client_->Decompress({&job, 1}, absl::InfiniteFuture(), sink);
  }

  // How many calls of this method the daemon has ended.
  uint64_t Calls(const std::string& method) {
    const auto stub =
        v1::KvCompression::NewStub(grpc::CreateChannel(daemon_->listen().front(), grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    v1::MetricsResponse metrics;
    EXPECT_TRUE(stub->Metrics(&context, {}, &metrics).ok());
    uint64_t calls = 0;
    for (const v1::MethodMetrics& row : metrics.methods()) {
      if (row.method() != method) continue;
      for (const auto& [code, count] : row.calls_by_code()) calls += count;
    }
    return calls;
  }

  std::unique_ptr<Daemon> daemon_;
  std::unique_ptr<CodecClient> client_;
};

// Whether a frame has its message alone, or its stream, or shares one with others, in front of it or behind.
TEST_F(TensorCallTest, ATruncatedFrameIsDataLossWhateverFollows) {
  for (const size_t elements : {1000, 4'000'000}) {
    const std::vector<std::byte> values = MakeValues(DType::kF16, elements, Distribution::kGaussian);
    const absl::StatusOr<std::string> frame =
        MakeFrame(MakeTensor(kName, DType::kF16, {elements}), AsText(values), nullptr);
    ASSERT_THAT(frame, IsOk());
    const MemorySource whole(AsBytes(*frame));
    for (const size_t size : {size_t{0}, frame->size() / 2, frame->size() - 1}) {
      const MemorySource cut(AsBytes(std::string_view(*frame).substr(0, size)));
      for (const std::vector<const ByteSource*>& sources : std::vector<std::vector<const ByteSource*>>{
               {&cut}, {&cut, &whole}, {&whole, &cut}, {&whole, &cut, &whole}}) {
        std::vector<DecompressJob> jobs;
        for (const ByteSource* source : sources) jobs.push_back({kName, source});
        ValueSink sink;
        EXPECT_THAT(client_->Decompress(jobs, absl::InfiniteFuture(), sink),
                    StatusIs(absl::StatusCode::kDataLoss, ::testing::HasSubstr("truncated")))
            << elements << " values, " << size << " bytes, of " << sources.size();
      }
    }
  }
}

TEST_F(TensorCallTest, SmallTensorsAreOneMessageAndTheSameBytes) {
  uint64_t calls = 0;
  for (const size_t elements : {0, 1, 32768, 100'000}) {
    const TensorDesc tensor = MakeTensor(kName, DType::kF16, {elements});
    const std::vector<std::byte> values = MakeValues(DType::kF16, elements, Distribution::kOutliers);
    ErrorSums sums;
    const absl::StatusOr<std::string> expected = MakeFrame(tensor, AsText(values), &sums);
    ASSERT_THAT(expected, IsOk());
    FrameSink frames;
    ASSERT_THAT(Compress(tensor, values, kCodec, frames), IsOk());
    EXPECT_EQ(frames.frame, *expected);
    ASSERT_EQ(frames.reports.size(), 1u);
    EXPECT_EQ(frames.reports[0].sums.sum_error_squares, sums.sum_error_squares);
    ValueSink decoded;
    ASSERT_THAT(Decompress(frames.frame, decoded), IsOk());
    EXPECT_EQ(decoded.values, Decode(*expected)->values);
    EXPECT_EQ(decoded.tensor, tensor);
    ++calls;
    EXPECT_EQ(Calls("CompressTensor"), calls);
    EXPECT_EQ(Calls("DecompressTensor"), calls);
  }
  EXPECT_EQ(Calls("Compress") + Calls("Decompress"), 0u);
}

TEST_F(TensorCallTest, LargerOnesAreStreams) {
  const std::vector<std::byte> values = MakeValues(DType::kF16, 200'000, Distribution::kOutliers);
  FrameSink frames;
  ASSERT_THAT(Compress(MakeTensor(kName, DType::kF16, {200'000}), values, kCodec, frames), IsOk());
  ValueSink decoded;  // the frame is small, its values are not
  ASSERT_THAT(Decompress(frames.frame, decoded), IsOk());
  EXPECT_EQ(decoded.values.size(), values.size());
  EXPECT_EQ(Calls("CompressTensor") + Calls("DecompressTensor"), 0u);
}

TEST_F(TensorCallTest, ReportsSayWhatTheDaemonCopied) {
  const std::vector<std::byte> values = MakeValues(DType::kF16, 200'000, Distribution::kOutliers);
  FrameSink frames;
  ASSERT_THAT(Compress(MakeTensor(kName, DType::kF16, {200'000}), values, "sparse(ratio=0.5)|int4", frames), IsOk());
  EXPECT_EQ(frames.reports[0].copied_bytes, values.size()) << "the codec needs all of it in one piece";
  ValueSink decoded;
  ASSERT_THAT(Decompress(frames.frame, decoded), IsOk());
  EXPECT_EQ(decoded.report.copied_bytes, frames.frame.size());
}

TEST_F(TensorCallTest, FaultsOfTheDataAreThoseOfTheCodec) {
  const TensorDesc tensor = MakeTensor(kName, DType::kF16, {1000});
  std::vector<std::byte> values = MakeValues(DType::kF16, 1000, Distribution::kOutliers);
  FrameSink frames;
  ASSERT_THAT(Compress(tensor, values, kCodec, frames), IsOk());
  for (size_t at = 0; at < frames.frame.size(); at += 13) {
    std::string damaged = frames.frame;
    damaged[at] = static_cast<char>(damaged[at] ^ 4);
    ValueSink decoded;
    EXPECT_EQ(Decompress(damaged, decoded).code(), absl::StatusCode::kDataLoss) << at;
    EXPECT_TRUE(decoded.values.empty());
  }
  values[101] = std::byte{0x7c};  // an infinity
  values[100] = std::byte{0};
  FrameSink none;
  const absl::Status refused = Compress(tensor, values, kCodec, none);
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("value 50 is infinity")));
  EXPECT_TRUE(none.frame.empty());
}

}  // namespace
}  // namespace kvcompress
