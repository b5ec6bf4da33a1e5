#pragma once

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/local_client.h"
#include "client/remote/remote_client.h"
#include "kvcompress/v1/kvcompress.grpc.pb.h"

namespace kvcompress::testing {

using CompressCall = grpc::ServerReaderWriter<v1::CompressResponse, v1::CompressRequest>;
using DecompressCall = grpc::ServerReaderWriter<v1::DecompressResponse, v1::DecompressRequest>;

using SharedMemoryCall = grpc::ServerReaderWriter<v1::SharedMemoryResponse, v1::SharedMemoryRequest>;

// A daemon that does what a test tells it to: mostly what a daemon should not.
class FakeDaemon final : public v1::KvCompression::Service {
 public:
  explicit FakeDaemon(std::string address = "127.0.0.1:0") : address_(std::move(address)) { Start(); }
  ~FakeDaemon() override { Stop(); }

  const std::string& address() const { return address_; }

  void Start() {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort(address_, grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
    if (address_.ends_with(":0")) address_ = absl::StrFormat("127.0.0.1:%d", port);
  }
  // Cuts off the calls that still run.
  void Stop() { server_->Shutdown(absl::ToChronoTime(absl::Now())); }

  grpc::Status Compress(grpc::ServerContext* context, CompressCall* call) override { return compress(*context, *call); }
  grpc::Status Decompress(grpc::ServerContext* context, DecompressCall* call) override {
    return decompress(*context, *call);
  }

  grpc::Status Capabilities(grpc::ServerContext*, const v1::CapabilitiesRequest*,
                            v1::CapabilitiesResponse* response) override {
    return capabilities ? capabilities(*response) : grpc::Status(grpc::UNIMPLEMENTED, "older");
  }
  grpc::Status SharedMemory(grpc::ServerContext*, SharedMemoryCall* call) override { return shared_memory(*call); }

  std::function<grpc::Status(v1::CapabilitiesResponse&)> capabilities;
  std::function<grpc::Status(SharedMemoryCall&)> shared_memory;
  std::function<grpc::Status(grpc::ServerContext&, CompressCall&)> compress;
  std::function<grpc::Status(grpc::ServerContext&, DecompressCall&)> decompress;

 private:
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

struct Frames final : CompressSink {
  absl::Status OnFrame(ByteSpan bytes) override {
    frame += AsText(bytes);
    return fault;
  }
  absl::Status OnTensor(const TensorReport& report) override {
    reports.push_back(report);
    return absl::OkStatus();
  }

  std::string frame;
  std::vector<TensorReport> reports;
  absl::Status fault;
};

struct Values final : DecompressSink {
  absl::Status OnHeader(const TensorDesc& tensor) override {
    tensors.push_back(tensor);
    return absl::OkStatus();
  }
  absl::Status OnData(ByteSpan bytes) override {
    values += AsText(bytes);
    return absl::OkStatus();
  }
  absl::Status OnTensor(const TensorReport&) override { return absl::OkStatus(); }

  std::vector<TensorDesc> tensors;
  std::string values;
};

// Of a tensor, or of those of a batch.
inline std::vector<v1::CompressHeader> HeadersOf(const v1::CompressRequest& request) {
  if (request.has_header()) return {request.header()};
  return {request.batch().headers().begin(), request.batch().headers().end()};
}

// What a daemon that knows no batches answers to one.
inline grpc::Status NoBatches() { return {grpc::INVALID_ARGUMENT, "message without a payload"}; }

inline v1::CompressResponse FrameBytes(std::string bytes) {
  v1::CompressResponse response;
  response.set_frame(std::move(bytes));
  return response;
}

inline v1::CompressResponse Report(std::string name, uint64_t tensor_bytes, uint64_t frame_bytes) {
  v1::CompressResponse response;
  response.mutable_tensor()->set_name(std::move(name));
  response.mutable_tensor()->set_tensor_bytes(tensor_bytes);
  response.mutable_tensor()->set_frame_bytes(frame_bytes);
  response.mutable_tensor()->set_copied_bytes(12345);
  v1::ErrorSums& sums = *response.mutable_tensor()->mutable_sums();
  sums.set_count(1);
  sums.set_sum(2);
  sums.set_sum_squares(3);
  sums.set_sum_deviations(4);
  sums.set_sum_error_squares(5);
  sums.set_sum_abs_error(6);
  sums.set_sum_cross(7);
  sums.set_max_abs_error(0.25);
  return response;
}

inline v1::DecompressResponse Header(uint64_t elements, v1::DType dtype = v1::DTYPE_F16) {
  v1::DecompressResponse response;
  response.mutable_header()->set_name("t");
  response.mutable_header()->set_dtype(dtype);
  response.mutable_header()->add_shape(elements);
  response.mutable_header()->add_axes(v1::AXIS_ROLE_OTHER);
  return response;
}

inline v1::DecompressResponse Data(std::string bytes) {
  v1::DecompressResponse response;
  response.set_data(std::move(bytes));
  return response;
}

inline v1::DecompressResponse Done(uint64_t tensor_bytes, uint64_t frame_bytes) {
  v1::DecompressResponse response;
  response.mutable_tensor()->set_name("t");
  response.mutable_tensor()->set_tensor_bytes(tensor_bytes);
  response.mutable_tensor()->set_frame_bytes(frame_bytes);
  return response;
}

// A port that nobody listens on; it is bound, so that nobody else gets it meanwhile.
class Socket {
 public:
  explicit Socket(bool listening) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&address), size), 0);
    if (listening) {
      EXPECT_EQ(listen(fd_, 1), 0);
    }
    getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size);
    address_ = absl::StrFormat("127.0.0.1:%d", ntohs(address.sin_port));
  }
  ~Socket() { close(fd_); }

  int fd() const { return fd_; }

  const std::string& address() const { return address_; }

 private:
  int fd_;
  std::string address_;
};

}  // namespace kvcompress::testing
