#include <vector>

#include "bench/transport/rpc.h"
#include "core/base/status_macros.h"

namespace kvcompress::bench {
namespace {

// Sends tensors without end: one write and one read in flight.
class ByteStream final : public CompressCall {
 public:
  ByteStream(GenericStub& stub, const Workload& workload, const RequestMessages& messages, size_t first_message,
             Progress& progress)
      : workload_(workload), messages_(messages), next_(first_message), progress_(progress) {
    Prepare(stub, workload);
    Send();
    StartRead(&response_);
    StartCall();
  }

  void OnWriteDone(bool ok) override {
    if (ok) Send();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (const auto bytes = FrameBytes(response_)) {
      tensor_frame_bytes_ += *bytes;
      progress_.Add(*bytes);
    } else if (std::exchange(tensor_frame_bytes_, 0) != workload_.frame_bytes) {
      // What is not a frame's bytes is a tensor's report.
      wrong_size_ = true;
      Cancel();
    }
    StartRead(&response_);
  }

  // Whether a frame had another size than it must have. After Await.
  bool wrong_size() const { return wrong_size_; }

 private:
  void Send() {
    if (left_ == 0) {
      left_ = messages_.per_tensor();
      StartWrite(&messages_.header());
    } else {
      --left_;
      StartWrite(&messages_.data(next_++));
    }
  }

  const Workload& workload_;
  const RequestMessages& messages_;
  size_t next_;
  size_t left_ = 0;  // data messages of the current tensor
  Progress& progress_;
  ByteBuffer response_;
  uint64_t tensor_frame_bytes_ = 0;
  bool wrong_size_ = false;
};

class ByteStreams final : public Contestant {
 public:
  ByteStreams(const Workload& workload, std::vector<std::shared_ptr<grpc::Channel>> channels)
      : workload_(workload), messages_(workload), channels_(std::move(channels)) {}

  absl::Status Run(Progress& progress) override {
    std::vector<std::unique_ptr<GenericStub>> stubs;
    for (const auto& channel : channels_) stubs.push_back(std::make_unique<GenericStub>(channel));
    std::vector<std::unique_ptr<ByteStream>> streams;
    for (size_t i = 0; i < workload_.streams; ++i) {
      streams.push_back(std::make_unique<ByteStream>(*stubs[i % stubs.size()], workload_, messages_,
                                                     i * messages_.per_tensor(), progress));
    }
    progress.WaitForStop();
    for (const auto& stream : streams) stream->Cancel();
    absl::Status result;
    for (const auto& stream : streams) {
      Keep(stream->Await(), result);
      if (stream->wrong_size()) result = absl::InternalError("a frame of another size than expected");
    }
    return result;
  }

 private:
  const Workload workload_;
  const RequestMessages messages_;
  const std::vector<std::shared_ptr<grpc::Channel>> channels_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Contestant>> NewByteStreams(const Workload& workload, const std::string& address) {
  KVC_ASSIGN_OR_RETURN(std::vector<std::shared_ptr<grpc::Channel>> channels, ConnectAll(workload, address));
  return std::make_unique<ByteStreams>(workload, std::move(channels));
}

}  // namespace kvcompress::bench
