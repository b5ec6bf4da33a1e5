#include "bench/transport/sink.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/synchronization/mutex.h"
#include "bench/transport/contestant.h"
#include "proto/wire/grpc/message.h"

namespace kvcompress::bench {
namespace {

using grpc::ByteBuffer;

// Above this much that waits to be sent, nothing is read.
constexpr uint64_t kMaxOwedBytes = 4 * kMaxPayloadBytes;

uint64_t Number(const grpc::CallbackServerContext& context, const char* key) {
  const auto found = context.client_metadata().find(key);
  uint64_t number = 0;
  const bool good = found != context.client_metadata().end() &&
                    absl::SimpleAtoi(absl::string_view(found->second.data(), found->second.size()), &number);
  return good ? number : 0;
}

ByteBuffer FrameMessage(uint32_t field, size_t bytes) {
  return PayloadMessage(field, {{.bytes = Values().subspan(0, bytes), .owner = nullptr}});
}

class SinkReactor final : public grpc::ServerBidiReactor<ByteBuffer, ByteBuffer> {
 public:
  explicit SinkReactor(grpc::CallbackServerContext* context)
      : tensor_bytes_(Number(*context, kTensorBytesKey)), frame_bytes_(Number(*context, kFrameBytesKey)) {
    if (tensor_bytes_ == 0) {
      Finish({grpc::StatusCode::INVALID_ARGUMENT, "metadata without sizes"});
      return;
    }
    StartRead(&request_);
  }

  void OnReadDone(bool ok) override {
    absl::MutexLock lock(&mutex_);
    reading_ = false;
    input_over_ = !ok;
    if (ok) received_ += request_.Length();
    request_.Clear();
    Step();
  }

  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    if (!ok) input_over_ = true;
    Step();
  }

  void OnDone() override { delete this; }

 private:
  void Step() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const uint64_t owed = static_cast<uint64_t>(static_cast<double>(received_) * static_cast<double>(frame_bytes_) /
                                                static_cast<double>(tensor_bytes_)) -
                          sent_;
    if (!writing_ && owed > 0) {
      const size_t bytes = static_cast<size_t>(std::min<uint64_t>(owed, kMaxPayloadBytes));
      response_ = FrameMessage(v1::CompressResponse::kFrameFieldNumber, bytes);
      sent_ += bytes;
      writing_ = true;
      StartWrite(&response_);
    }
    if (!reading_ && !input_over_ && owed < kMaxOwedBytes) {
      reading_ = true;
      StartRead(&request_);
    }
    if (input_over_ && !reading_ && !writing_) Finish(grpc::Status::OK);
  }

  const uint64_t tensor_bytes_;
  const uint64_t frame_bytes_;
  absl::Mutex mutex_;
  bool reading_ ABSL_GUARDED_BY(mutex_) = true;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool input_over_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t received_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t sent_ ABSL_GUARDED_BY(mutex_) = 0;
  ByteBuffer request_;
  ByteBuffer response_;
};

}  // namespace

grpc::ServerBidiReactor<ByteBuffer, ByteBuffer>* Sink::Compress(grpc::CallbackServerContext* context) {
  return new SinkReactor(context);
}

grpc::ServerUnaryReactor* Sink::CompressTensor(grpc::CallbackServerContext* context, const ByteBuffer*,
                                               ByteBuffer* response) {
  *response = FrameMessage(v1::CompressTensorResponse::kFrameFieldNumber,
                           std::min<size_t>(Number(*context, kFrameBytesKey), kMaxPayloadBytes));
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

}  // namespace kvcompress::bench
