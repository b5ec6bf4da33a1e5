#include <grpcpp/grpcpp.h>

#include <thread>

#include "kvcompress/v1/kvcompress.grpc.pb.h"
#include "server/daemon.h"
#include "tests/interop/stock.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

INSTANTIATE_TEST_SUITE_P(PayloadBytes, StockTest, AllChunks());

// Makes a call: what `send` writes, from a thread of its own, and what comes back to `take`.
template <typename Call, typename Response, typename Send, typename Take>
grpc::Status Exchange(Call& call, Response response, Send send, Take take) {
  std::thread sender([&] {
    send();
    call.WritesDone();
  });
  while (call.Read(&response)) take(response);
  sender.join();
  return call.Finish();
}

TEST_P(StockTest, ClientAndOurServer) {
  Options options;
  options.listen = {"127.0.0.1:0"};
  options.metrics_listen = "";
  options.threads = 2;
  const absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Start(options);
  ASSERT_THAT(daemon, IsOk());
  const auto stub =
      v1::KvCompression::NewStub(grpc::CreateChannel((*daemon)->listen().front(), grpc::InsecureChannelCredentials()));

  grpc::ClientContext compress_context;
  const auto compress = stub->Compress(&compress_context);
  std::string frame;
  v1::TensorReport report;
  const auto send_tensor = [&] {
    v1::CompressRequest request;
    *request.mutable_header()->mutable_tensor() = ToProto(tensor_);
    request.mutable_header()->set_codec(kCodec);
    compress->Write(request);
    ForEachChunk(values_, GetParam(), [&](std::string data) {
      request.set_data(std::move(data));
      compress->Write(request);
    });
  };
  EXPECT_TRUE(Exchange(*compress, v1::CompressResponse(), send_tensor, [&](const v1::CompressResponse& response) {
                frame += response.frame();
                if (response.has_tensor()) report = response.tensor();
              }).ok());
  EXPECT_TRUE(frame == frame_);
  EXPECT_EQ(report.tensor_bytes(), values_.size());
  EXPECT_EQ(report.frame_bytes(), frame_.size());

  grpc::ClientContext decompress_context;
  const auto decompress = stub->Decompress(&decompress_context);
  std::string decoded;
  v1::Tensor header;
  const auto send_frame = [&] {
    v1::DecompressRequest request;
    request.mutable_header()->set_name(kName);
    decompress->Write(request);
    ForEachChunk(frame_, GetParam(), [&](std::string data) {
      request.set_frame(std::move(data));
      decompress->Write(request);
    });
  };
  EXPECT_TRUE(Exchange(*decompress, v1::DecompressResponse(), send_frame, [&](const v1::DecompressResponse& response) {
                decoded += response.data();
                if (response.has_header()) header = response.header();
              }).ok());
  EXPECT_TRUE(decoded == decoded_);
  EXPECT_EQ(header.SerializeAsString(), ToProto(tensor_).SerializeAsString());
}

}  // namespace
}  // namespace kvcompress
