#pragma once

#include <algorithm>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "client/deadline.h"
#include "client/remote/remote_stream.h"
#include "client/remote/replies.h"
#include "client/remote/slice_reader.h"
#include "core/base/status_macros.h"
#include "proto/wire/grpc/message.h"

namespace kvcompress {

// All in which the two directions differ on the wire.
struct CompressMethod {
  using Replies = CompressReplies;
  using TensorRequest = v1::CompressTensorRequest;
  using TensorResponse = v1::CompressTensorResponse;
  static constexpr const char* kTensorName = "/kvcompress.v1.KvCompression/CompressTensor";
  static constexpr uint32_t kTensorOutputField = TensorResponse::kFrameFieldNumber;
  using Request = v1::CompressRequest;
  using Response = v1::CompressResponse;
  static constexpr const char* kName = "/kvcompress.v1.KvCompression/Compress";
  static constexpr uint32_t kInputField = Request::kDataFieldNumber;
  static constexpr uint32_t kOutputField = Response::kFrameFieldNumber;

  static Request Header(const CompressJob& job, bool to_room);
  static v1::SharedMemoryRange& Input(Request& request) { return *request.mutable_shared_data(); }
  static v1::SharedMemoryRange& Room(Request& request) { return *request.mutable_frame_buffer(); }
  // Most bytes that come back; empty where that is not known beforehand.
  static std::optional<uint64_t> MaxOutput(const CompressJob& job);

  template <typename AnyResponse>
  static ByteSpan Output(const AnyResponse& response) {
    return AsBytes(response.frame());
  }
  static const v1::SharedMemoryRange* SharedOutput(const Response& response) {
    return response.has_shared_frame() ? &response.shared_frame() : nullptr;
  }
  // What a response tells of the output before it comes.
  static absl::Status OnOther(CompressReplies&, const Response&) { return absl::OkStatus(); }
  static absl::Status OnOther(CompressReplies&, const TensorResponse&) { return absl::OkStatus(); }
};

struct DecompressMethod {
  using Replies = DecompressReplies;
  using TensorRequest = v1::DecompressTensorRequest;
  using TensorResponse = v1::DecompressTensorResponse;
  static constexpr const char* kTensorName = "/kvcompress.v1.KvCompression/DecompressTensor";
  static constexpr uint32_t kTensorOutputField = TensorResponse::kDataFieldNumber;
  using Request = v1::DecompressRequest;
  using Response = v1::DecompressResponse;
  static constexpr const char* kName = "/kvcompress.v1.KvCompression/Decompress";
  static constexpr uint32_t kInputField = Request::kFrameFieldNumber;
  static constexpr uint32_t kOutputField = Response::kDataFieldNumber;

  static Request Header(const DecompressJob& job, bool to_room);
  static v1::SharedMemoryRange& Input(Request& request) { return *request.mutable_shared_frame(); }
  static v1::SharedMemoryRange& Room(Request& request) { return *request.mutable_data_buffer(); }
  static std::optional<uint64_t> MaxOutput(const DecompressJob& job);

  template <typename AnyResponse>
  static ByteSpan Output(const AnyResponse& response) {
    return AsBytes(response.data());
  }
  static const v1::SharedMemoryRange* SharedOutput(const Response& response) {
    return response.has_shared_data() ? &response.shared_data() : nullptr;
  }
  static absl::Status OnOther(DecompressReplies& replies, const Response& response) {
    return response.has_header() ? replies.OnHeader(response.header()) : absl::OkStatus();
  }
  static absl::Status OnOther(DecompressReplies& replies, const TensorResponse& response) {
    return replies.OnHeader(response.header());
  }
};

// The most bytes, in either direction, for which a job is a message instead of a stream.
inline constexpr uint64_t kMaxTensorCallBytes = uint64_t{256} << 10;

template <typename Method>
bool FitsTensorCall(const typename Method::Replies::Job& job) {
  if (job.source->size() > kMaxTensorCallBytes) return false;
  return Method::MaxOutput(job).value_or(UINT64_MAX) <= kMaxTensorCallBytes;
}

// One attempt at a job that FitsTensorCall. It may end well without an answer; `delivery` tells.
template <typename Method>
StreamEnd CallTensor(const std::shared_ptr<grpc::Channel>& channel, absl::Time deadline, std::string_view address,
                     const typename Method::Replies::Job& job, typename Method::Replies::Sink& sink, Delivery& delivery,
                     SliceReader& slices) {
  absl::StatusOr<Slice> input = slices.Read(*job.source, 0, static_cast<size_t>(job.source->size()));
  if (!input.ok()) return {input.status(), {}, {}};
  typename Method::TensorRequest head;
  *head.mutable_header() = std::move(*Method::Header(job, /*to_room=*/false).mutable_header());
  grpc::ByteBuffer request =
      PayloadMessage(Method::kInputField, {*std::exchange(input, absl::CancelledError())}, head.SerializeAsString());
  grpc::ByteBuffer reply;
  StreamEnd end = CallUnary(channel, Method::kTensorName, deadline, request, reply);
  request.Clear();
  if (!end.status.ok() || !reply.Valid()) return end;
  typename Method::Replies replies(address, sink, delivery);
  end.handler = [&]() -> absl::Status {
    const std::optional<SplitMessage> split = SplitAtPayload(reply, Method::kTensorOutputField);
    typename Method::TensorResponse response;
    if (!(split ? response.ParseFromString(split->head) : ParseMessage(reply, response))) {
      return DaemonFault(address, absl::StatusCode::kInternal, "its message cannot be parsed");
    }
    KVC_RETURN_IF_ERROR(Method::OnOther(replies, response));
    KVC_RETURN_IF_ERROR(replies.OnBytes(job, Method::Output(response)));
    if (split) {
      for (const Slice& slice : split->payload) {
        KVC_RETURN_IF_ERROR(CheckDeadline(deadline));
        KVC_RETURN_IF_ERROR(replies.OnBytes(job, slice.bytes));
      }
    }
    return replies.OnReport(job, response.report());
  }();
  return end;
}

// One attempt at `jobs`: a subclass sends them, this takes what comes back.
template <typename Method>
class Exchange : public StreamHandler {
 public:
  using Job = typename Method::Replies::Job;
  using Sink = typename Method::Replies::Sink;
  using Request = typename Method::Request;
  using Response = typename Method::Response;

  Exchange(std::string_view address, std::span<const Job> jobs, absl::Time deadline, Sink& sink, Delivery& delivery)
      : address_(address), jobs_(jobs), deadline_(deadline), replies_(address, sink, delivery) {}

  absl::Status Take(const grpc::ByteBuffer& reply) final {
    if (const std::optional<std::vector<Slice>> output = PayloadOf(reply, Method::kOutputField)) {
      for (const Slice& slice : *output) KVC_RETURN_IF_ERROR(OnOutput(slice.bytes));
      return absl::OkStatus();
    }
    Response response;
    if (!ParseMessage(reply, response)) return WrongReply("its message cannot be parsed");
    if (response.has_stream()) return absl::OkStatus();
    if (response.payload_case() == Response::kInputReleased) return OnReleased(response.input_released());
    if (done_ == jobs_.size()) return WrongReply("it sent more tensors than it was given");
    if (response.has_tensor()) {
      KVC_RETURN_IF_ERROR(replies_.OnReport(jobs_[done_++], response.tensor()));
      return OnTensorEnd();
    }
    if (const v1::SharedMemoryRange* range = Method::SharedOutput(response)) return OnSharedOutput(*range);
    // Output in an encoding that is valid, but not the one that PayloadOf knows.
    if (!Method::Output(response).empty()) return OnOutput(Method::Output(response));
    return Method::OnOther(replies_, response);
  }

  size_t done() const { return done_; }

 protected:
  std::span<const Job> jobs() const { return jobs_; }

  absl::Status OnOutput(ByteSpan bytes) {
    if (done_ == jobs_.size()) return WrongReply("it sent more tensors than it was given");
    KVC_RETURN_IF_ERROR(CheckDeadline(deadline_));
    return replies_.OnBytes(jobs_[done_], bytes);
  }

  absl::Status WrongReply(std::string_view what) const {
    return DaemonFault(address_, absl::StatusCode::kInternal, what);
  }

 private:
  // Of streams that use shared memory.
  virtual absl::Status OnSharedOutput(const v1::SharedMemoryRange&) {
    return WrongReply("it speaks of shared memory that it was not given");
  }
  virtual absl::Status OnReleased(uint64_t) { return WrongReply("it speaks of shared memory that it was not given"); }
  virtual absl::Status OnTensorEnd() { return absl::OkStatus(); }

  const std::string_view address_;
  const std::span<const Job> jobs_;
  const absl::Time deadline_;
  typename Method::Replies replies_;
  size_t done_ = 0;  // jobs
};

// Sends the bytes in messages.
template <typename Method>
class ByteExchange final : public Exchange<Method> {
 public:
  using typename Exchange<Method>::Job;
  using typename Exchange<Method>::Sink;
  using typename Exchange<Method>::Outgoing;

  ByteExchange(std::string_view address, std::span<const Job> jobs, absl::Time deadline, Sink& sink, Delivery& delivery,
               SliceReader& slices)
      : Exchange<Method>(address, jobs, deadline, sink, delivery), slices_(slices) {}

  absl::StatusOr<std::optional<Outgoing>> Next() override {
    const Job& job = this->jobs()[sending_];
    Outgoing next;
    if (!std::exchange(header_sent_, true)) {
      if (!SerializeMessage(Method::Header(job, /*to_room=*/false), next.message)) {
        return absl::InternalError("a header is too large");
      }
    } else {
      const size_t count = std::min<uint64_t>(kMaxPayloadBytes, job.source->size() - sent_bytes_);
      KVC_ASSIGN_OR_RETURN(Slice slice, slices_.Read(*job.source, sent_bytes_, count));
      next.message = PayloadMessage(Method::kInputField, {std::move(slice)});
      sent_bytes_ += count;
    }
    if (sent_bytes_ == job.source->size()) {
      ++sending_;
      header_sent_ = false;
      sent_bytes_ = 0;
    }
    next.last = sending_ == this->jobs().size();
    next.followed = !next.last;
    return next;
  }

 private:
  SliceReader& slices_;
  size_t sending_ = 0;  // index of the job
  bool header_sent_ = false;
  uint64_t sent_bytes_ = 0;  // of it
};

}  // namespace kvcompress
