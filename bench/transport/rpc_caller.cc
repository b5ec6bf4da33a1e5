#include "absl/strings/str_format.h"
#include "bench/transport/rpc.h"
#include "core/base/status_macros.h"
#include "proto/wire/grpc/message.h"

namespace kvcompress::bench {
namespace {

absl::Status Fault(const grpc::Status& status) {
  return absl::InternalError(absl::StrFormat("a call failed: %d %s", status.error_code(), status.error_message()));
}

absl::Status WrongSize() { return absl::InternalError("an answer of another size than expected"); }

class UnaryCaller final : public Caller {
 public:
  UnaryCaller(const Workload& workload, std::shared_ptr<grpc::Channel> channel)
      : workload_(workload), stub_(std::move(channel)) {
    v1::CompressTensorRequest head;
    *head.mutable_header() = HeaderOf(workload);
    request_ = PayloadMessage(v1::CompressTensorRequest::kDataFieldNumber,
                              {{.bytes = Values().first(static_cast<size_t>(workload.tensor_bytes)), .owner = nullptr}},
                              &head);
  }

  absl::Status Call() override {
    grpc::ClientContext context;
    Describe(workload_, context);
    ByteBuffer response;
    grpc::Status status;
    Event done{0};
    stub_.UnaryCall(&context, kUnaryMethod, {}, &request_, &response, [&](const grpc::Status& result) {
      status = result;
      done.release();
    });
    done.acquire();
    if (!status.ok()) return Fault(status);
    const auto split = SplitAtPayload(response, v1::CompressTensorResponse::kFrameFieldNumber);
    return split && ByteCount(split->payload) == workload_.frame_bytes ? absl::OkStatus() : WrongSize();
  }

 private:
  const Workload workload_;
  ByteBuffer request_;
  GenericStub stub_;
};

// A call with one tensor, whose header and values are sent together.
class OneTensor final : public CompressCall {
 public:
  OneTensor(GenericStub& stub, const Workload& workload, const RequestMessages& messages) : messages_(messages) {
    Prepare(stub, workload);
    StartWrite(&messages_.header(), grpc::WriteOptions().set_buffer_hint());
    StartRead(&response_);
    StartCall();
  }

  void OnWriteDone(bool ok) override {
    if (ok && sent_++ == 0) StartWriteLast(&messages_.data(0), {});
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    frame_bytes_ += FrameBytes(response_).value_or(0);
    StartRead(&response_);
  }

  uint64_t frame_bytes() const { return frame_bytes_; }

 private:
  const RequestMessages& messages_;
  int sent_ = 0;
  ByteBuffer response_;
  uint64_t frame_bytes_ = 0;
};

class StreamCaller final : public Caller {
 public:
  StreamCaller(const Workload& workload, std::shared_ptr<grpc::Channel> channel)
      : workload_(workload), messages_(workload), stub_(std::move(channel)) {}

  absl::Status Call() override {
    OneTensor call(stub_, workload_, messages_);
    const grpc::Status status = call.Await();
    if (!status.ok()) return Fault(status);
    // The sink counts the few bytes of the header, too.
    return call.frame_bytes() / 100 == workload_.frame_bytes / 100 ? absl::OkStatus() : WrongSize();
  }

 private:
  const Workload workload_;
  const RequestMessages messages_;
  GenericStub stub_;
};

// A call that takes tensors when it is told to.
class OpenStream final : public CompressCall {
 public:
  OpenStream(GenericStub& stub, const Workload& workload, const RequestMessages& messages)
      : workload_(workload), messages_(messages) {
    Prepare(stub, workload);
    AddHold();
    StartRead(&response_);
    StartCall();
  }

  // One tensor, up to its report. False when the call has ended.
  bool Send() {
    header_sent_ = false;
    StartWrite(&messages_.header(), grpc::WriteOptions().set_buffer_hint());
    for (int i = 0; i < 2; ++i) progress_.acquire();  // the last write, and the report
    return good_;
  }

  void Close() {
    StartWritesDone();
    RemoveHold();
  }

  void OnWriteDone(bool ok) override {
    if (ok && !std::exchange(header_sent_, true)) return StartWrite(&messages_.data(0));
    progress_.release();
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      good_ = false;
      return progress_.release();
    }
    if (const auto bytes = FrameBytes(response_)) {
      frame_bytes_ += *bytes;
    } else {
      good_ = std::exchange(frame_bytes_, 0) == workload_.frame_bytes;
      progress_.release();
    }
    StartRead(&response_);
  }

 private:
  const Workload& workload_;
  const RequestMessages& messages_;
  bool header_sent_ = false;
  ByteBuffer response_;
  uint64_t frame_bytes_ = 0;
  std::atomic<bool> good_ = true;
  std::counting_semaphore<> progress_{0};
};

class OpenStreamCaller final : public Caller {
 public:
  OpenStreamCaller(const Workload& workload, std::shared_ptr<grpc::Channel> channel)
      : workload_(workload),
        messages_(workload),
        stub_(std::move(channel)),
        stream_(std::make_unique<OpenStream>(stub_, workload_, messages_)) {}
  ~OpenStreamCaller() override {
    stream_->Close();
    stream_->Await();
  }

  absl::Status Call() override { return stream_->Send() ? absl::OkStatus() : WrongSize(); }

 private:
  const Workload workload_;
  const RequestMessages messages_;
  GenericStub stub_;
  std::unique_ptr<OpenStream> stream_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Caller>> NewRpcCaller(const Workload& workload, const std::string& address,
                                                     CallKind kind) {
  if (workload.message_bytes != workload.tensor_bytes) {
    return absl::InvalidArgumentError("a call has one message of values");
  }
  KVC_ASSIGN_OR_RETURN(std::shared_ptr<grpc::Channel> channel, Connect(address));
  switch (kind) {
    case CallKind::kUnary: return std::make_unique<UnaryCaller>(workload, std::move(channel));
    case CallKind::kStream: return std::make_unique<StreamCaller>(workload, std::move(channel));
    case CallKind::kOpenStream: return std::make_unique<OpenStreamCaller>(workload, std::move(channel));
  }
  return absl::InvalidArgumentError("a call of no kind");
}

}  // namespace kvcompress::bench
