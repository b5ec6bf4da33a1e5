#include <grpcpp/grpcpp.h>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/remote/remote_client.h"
#include "kvcompress/v1/kvcompress.grpc.pb.h"
#include "tests/interop/stock.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

INSTANTIATE_TEST_SUITE_P(PayloadBytes, StockTest, AllChunks());

struct Output final : CompressSink, DecompressSink {
  absl::Status OnFrame(ByteSpan frame) override { return Add(frame); }
  absl::Status OnData(ByteSpan values) override { return Add(values); }
  absl::Status OnHeader(const TensorDesc& header) override {
    tensor = header;
    return absl::OkStatus();
  }
  absl::Status OnTensor(const TensorReport& tensor_report) override {
    report = tensor_report;
    return absl::OkStatus();
  }
  absl::Status Add(ByteSpan more) {
    bytes += AsText(more);
    return absl::OkStatus();
  }

  std::string bytes;
  TensorDesc tensor;
  TensorReport report;
};

absl::StatusOr<Output> Compress(CodecClient& client, const TensorDesc& tensor, std::string_view values) {
  const MemorySource source{AsBytes(values)};
  const CompressJob job{tensor, kCodec, &source};
  Output output;
  const absl::Status status = client.Compress(std::span(&job, 1), absl::Now() + absl::Minutes(1), output);
  return status.ok() ? absl::StatusOr<Output>(std::move(output)) : status;
}

absl::StatusOr<Output> Decompress(CodecClient& client, std::string_view frame) {
  const MemorySource source{AsBytes(frame)};
  const DecompressJob job{kName, &source};
  Output output;
  const absl::Status status = client.Decompress(std::span(&job, 1), absl::Now() + absl::Minutes(1), output);
  return status.ok() ? absl::StatusOr<Output>(std::move(output)) : status;
}

// The two streaming methods for one tensor a stream, and none of the others: what somebody else would write first.
class StockServer final : public v1::KvCompression::Service {
 public:
  explicit StockServer(size_t chunk) : chunk_(chunk) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~StockServer() override { server_->Shutdown(absl::ToChronoTime(absl::Now())); }

  std::string address() const { return absl::StrFormat("127.0.0.1:%d", port_); }

  grpc::Status Compress(grpc::ServerContext*,
                        grpc::ServerReaderWriter<v1::CompressResponse, v1::CompressRequest>* call) override {
    v1::CompressRequest request;
    TensorDesc tensor;
    std::string values;
    while (call->Read(&request)) {
      if (request.has_header()) {
        const v1::Tensor& proto = request.header().tensor();
        tensor =
            MakeTensor(proto.name(), static_cast<DType>(proto.dtype()), {proto.shape().begin(), proto.shape().end()});
      } else {
        values += request.data();
      }
    }
    ErrorSums sums;
    const absl::StatusOr<std::string> frame = MakeFrame(tensor, values, &sums);
    if (!frame.ok()) return {grpc::StatusCode::INTERNAL, std::string(frame.status().message())};
    v1::CompressResponse response;
    ForEachChunk(*frame, chunk_, [&](std::string part) {
      response.set_frame(std::move(part));
      call->Write(response);
    });
    Describe(tensor.name, values.size(), frame->size(), *response.mutable_tensor());
    response.mutable_tensor()->mutable_sums()->set_max_abs_error(sums.max_abs_error);
    call->Write(response);
    response.mutable_stream();
    call->Write(response);
    return grpc::Status::OK;
  }

  grpc::Status Decompress(grpc::ServerContext*,
                          grpc::ServerReaderWriter<v1::DecompressResponse, v1::DecompressRequest>* call) override {
    v1::DecompressRequest request;
    std::string name;
    std::string frame;
    while (call->Read(&request)) {
      if (request.has_header()) name = request.header().name();
      frame += request.frame();
    }
    const absl::StatusOr<Decoded> decoded = Decode(frame);
    if (!decoded.ok()) return {grpc::StatusCode::INTERNAL, std::string(decoded.status().message())};
    v1::DecompressResponse response;
    *response.mutable_header() = ToProto(decoded->tensor);
    call->Write(response);
    ForEachChunk(decoded->values, chunk_, [&](std::string data) {
      response.set_data(std::move(data));
      call->Write(response);
    });
    Describe(name, decoded->values.size(), frame.size(), *response.mutable_tensor());
    call->Write(response);
    response.mutable_stream();
    call->Write(response);
    return grpc::Status::OK;
  }

 private:
  static void Describe(const std::string& name, size_t tensor_bytes, size_t frame_bytes, v1::TensorReport& report) {
    report.set_name(name);
    report.set_tensor_bytes(tensor_bytes);
    report.set_frame_bytes(frame_bytes);
  }

  const size_t chunk_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

TEST_P(StockTest, OurClientAndServer) {
  const StockServer server(GetParam());
  const absl::StatusOr<std::unique_ptr<CodecClient>> client = MakeRemoteClient({.address = server.address()});
  ASSERT_THAT(client, IsOk());
  const absl::StatusOr<Output> frame = Compress(**client, tensor_, values_);
  ASSERT_THAT(frame, IsOk());
  EXPECT_TRUE(frame->bytes == frame_);
  EXPECT_EQ(frame->report.frame_bytes, frame_.size());
  EXPECT_GT(frame->report.sums.max_abs_error, 0);
  const absl::StatusOr<Output> decoded = Decompress(**client, frame_);
  ASSERT_THAT(decoded, IsOk());
  EXPECT_TRUE(decoded->bytes == decoded_);
  EXPECT_EQ(decoded->tensor, tensor_);
}

}  // namespace
}  // namespace kvcompress
