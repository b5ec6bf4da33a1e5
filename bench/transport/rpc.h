#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/client_callback.h>

#include <optional>
#include <semaphore>

#include "bench/transport/contestant.h"
#include "core/base/slice.h"

// Compress calls in terms of raw messages.
namespace kvcompress::bench {

using grpc::ByteBuffer;

inline constexpr char kCompressMethod[] = "/kvcompress.v1.KvCompression/Compress";
inline constexpr char kUnaryMethod[] = "/kvcompress.v1.KvCompression/CompressTensor";

// Something that one thread waits for and another makes happen.
using Event = std::binary_semaphore;

// The connections of a workload's streams.
absl::StatusOr<std::vector<std::shared_ptr<grpc::Channel>>> ConnectAll(const Workload& workload,
                                                                       const std::string& address);

// Makes `result` an error unless `status` is that of a call that was cancelled.
void Keep(const grpc::Status& status, absl::Status& result);

// The request messages of a workload: a header, and the values of the buffer in messages that refer to them.
class RequestMessages {
 public:
  explicit RequestMessages(const Workload& workload);

  const ByteBuffer& header() const { return header_; }
  const ByteBuffer& data(size_t index) const { return data_[index % data_.size()]; }
  size_t per_tensor() const { return per_tensor_; }

 private:
  ByteBuffer header_;
  std::vector<ByteBuffer> data_;
  size_t per_tensor_;
};

// The header of a tensor of the workload.
v1::CompressHeader HeaderOf(const Workload& workload);

uint64_t ByteCount(const std::vector<Slice>& payload);
// Bytes of a frame in a response; empty for one of another kind.
std::optional<uint64_t> FrameBytes(const ByteBuffer& response);

// A Compress call, which its user keeps until Await has returned.
class CompressCall : public grpc::ClientBidiReactor<ByteBuffer, ByteBuffer> {
 public:
  // Ends a call that does not end by itself. From any thread.
  void Cancel() { context_.TryCancel(); }
  // Waits for the call's end.
  grpc::Status Await() {
    done_.acquire();
    return status_;
  }

  void OnDone(const grpc::Status& status) override {
    status_ = status;
    done_.release();
  }

 protected:
  void Prepare(GenericStub& stub, const Workload& workload) {
    Describe(workload, context_);
    stub.PrepareBidiStreamingCall(&context_, kCompressMethod, {}, this);
  }

 private:
  grpc::ClientContext context_;
  grpc::Status status_;
  Event done_{0};
};

}  // namespace kvcompress::bench
