#pragma once

#include <algorithm>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "client/deadline.h"
#include "client/remote/jobs.h"
#include "client/remote/remote_stream.h"
#include "client/remote/slice_reader.h"
#include "core/base/status_macros.h"
#include "proto/wire/grpc/message.h"
#include "proto/wire/methods.h"

namespace kvcompress {

// A job is a message instead of a stream up to this many bytes of input, and of output.
inline constexpr uint64_t kMaxTensorCallBytes = uint64_t{256} << 10;

template <typename Job>
bool FitsTensorCall(const Job& job) {
  return job.source->size() <= kMaxTensorCallBytes && MaxOutputBytes(job).value_or(UINT64_MAX) <= kMaxTensorCallBytes;
}

// Makes one attempt at a job that FitsTensorCall. A call may end well and yet bring no answer; `delivery` tells.
// `watch` may be null.
template <typename Replies>
StreamEnd CallTensor(const std::shared_ptr<grpc::Channel>& channel, absl::Time deadline, std::string_view address,
                     const typename Replies::Job& job, typename Replies::Sink& sink, Delivery& delivery,
                     SliceReader& slices, CallWatch* watch = nullptr) {
  using Direction = typename Replies::Direction;
  absl::StatusOr<Slice> input = slices.Read(*job.source, 0, static_cast<size_t>(job.source->size()));
  if (!input.ok()) return {input.status(), {}, {}};
  typename Direction::TensorRequest head;
  *head.mutable_header() = HeaderOf(job, /*to_buffers=*/false);
  grpc::ByteBuffer request = PayloadMessage(Direction::kTensorInput, {*std::exchange(input, absl::CancelledError())},
                                            head.SerializeAsString());
  grpc::ByteBuffer reply;
  StreamEnd end = CallUnary(channel, MethodPath<typename Direction::TensorRequest>(), deadline, request, reply, watch);
  request.Clear();
  if (!end.status.ok() || !reply.Valid()) return end;
  Replies replies(address, sink, delivery);
  end.handler = [&]() -> absl::Status {
    const std::optional<SplitMessage> split = SplitAtPayload(reply, Direction::kTensorOutput);
    typename Direction::TensorResponse response;
    if (!(split ? response.ParseFromString(split->head) : ParseMessage(reply, response))) {
      return replies.WrongReply("its message cannot be parsed");
    }
    KVC_RETURN_IF_ERROR(replies.OnDescription(job, response));
    KVC_RETURN_IF_ERROR(replies.OnBytes(job, AsBytes(Direction::Output(response))));
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

// One attempt at `jobs`: a subclass sends them, this class takes what comes back.
template <typename Replies>
class Exchange : public StreamHandler {
 public:
  using Direction = typename Replies::Direction;
  using Job = typename Replies::Job;
  using Sink = typename Replies::Sink;
  using Request = typename Direction::Request;
  using Response = typename Direction::Response;

  Exchange(std::string_view address, std::span<const Job> jobs, absl::Time deadline, Sink& sink, Delivery& delivery)
      : jobs_(jobs), deadline_(deadline), replies_(address, sink, delivery) {}

  absl::Status Take(const grpc::ByteBuffer& reply) final {
    if (const std::optional<std::vector<Slice>> output = PayloadOf(reply, Direction::kOutput)) {
      for (const Slice& slice : *output) KVC_RETURN_IF_ERROR(OnMessage(slice.bytes));
      return absl::OkStatus();
    }
    Response response;
    if (!ParseMessage(reply, response)) return WrongReply("its message cannot be parsed");
    if (response.has_stream()) return absl::OkStatus();
    if (response.payload_case() == Response::kInputReleased) return OnReleased(response.input_released());
    if (all_done()) return WrongReply("it sent more tensors than it was given");
    if (response.has_tensor()) {
      KVC_RETURN_IF_ERROR(replies_.OnReport(jobs_[done_++], response.tensor()));
      return OnTensorEnd();
    }
    if (response.payload_case() == Direction::kSharedOutput) return OnSharedOutput(Direction::SharedOutput(response));
    // Output in an encoding that is valid, but not the one that PayloadOf knows.
    if (response.payload_case() == Direction::kOutput) return OnMessage(AsBytes(Direction::Output(response)));
    return replies_.OnDescription(jobs_[done_], response);
  }

 protected:
  bool all_done() const { return done_ == jobs_.size(); }

  absl::Status OnOutput(ByteSpan bytes) {
    if (all_done()) return WrongReply("it sent more tensors than it was given");
    KVC_RETURN_IF_ERROR(CheckDeadline(deadline_));
    return replies_.OnBytes(jobs_[done_], bytes);
  }

  absl::Status WrongReply(std::string_view what) const { return replies_.WrongReply(what); }

  // How far the jobs are sent.
  bool all_sent() const { return sending_ == jobs_.size(); }
  bool header_sent() const { return header_sent_; }
  // The current job's input, and how much of it is sent.
  const ByteSource& source() const { return *jobs_[sending_].source; }
  uint64_t sent_bytes() const { return sent_bytes_; }

  // The current job's header, which counts as sent.
  Request SendHeader(bool to_buffers) {
    Request request;
    *request.mutable_header() = HeaderOf(jobs_[sending_], to_buffers);
    header_sent_ = true;
    Sent(0);
    return request;
  }
  // Counts bytes of input that are sent. Returns whether they were the job's last.
  bool Sent(uint64_t bytes) {
    sent_bytes_ += bytes;
    if (sent_bytes_ < source().size()) return false;
    ++sending_;
    header_sent_ = false;
    sent_bytes_ = 0;
    return true;
  }

 private:
  // Output that came in a message.
  virtual absl::Status OnMessage(ByteSpan bytes) { return OnOutput(bytes); }
  // Of streams that use shared memory.
  virtual absl::Status OnSharedOutput(const v1::SharedMemoryRange&) {
    return WrongReply("it speaks of shared memory that it was not given");
  }
  virtual absl::Status OnReleased(uint64_t) { return WrongReply("it speaks of shared memory that it was not given"); }
  virtual absl::Status OnTensorEnd() { return absl::OkStatus(); }

  const std::span<const Job> jobs_;
  const absl::Time deadline_;
  Replies replies_;
  size_t done_ = 0;     // jobs
  size_t sending_ = 0;  // index of the job
  bool header_sent_ = false;
  uint64_t sent_bytes_ = 0;  // of it
};

// Sends the bytes in messages.
template <typename Replies>
class ByteExchange final : public Exchange<Replies> {
 public:
  using Base = Exchange<Replies>;
  using typename Base::Outgoing;

  ByteExchange(std::string_view address, std::span<const typename Base::Job> jobs, absl::Time deadline,
               typename Base::Sink& sink, Delivery& delivery, SliceReader& slices)
      : Base(address, jobs, deadline, sink, delivery), slices_(slices) {}

  absl::StatusOr<std::optional<Outgoing>> Next() override {
    Outgoing next;
    if (!this->header_sent()) {
      KVC_RETURN_IF_ERROR(SerializeMessage(this->SendHeader(/*to_buffers=*/false), next.message));
    } else {
      const size_t count = std::min<uint64_t>(kMaxPayloadBytes, this->source().size() - this->sent_bytes());
      KVC_ASSIGN_OR_RETURN(Slice slice, slices_.Read(this->source(), this->sent_bytes(), count));
      next.message = PayloadMessage(Base::Direction::kInput, {std::move(slice)});
      this->Sent(count);
    }
    next.last = this->all_sent();
    next.followed = !next.last;
    return next;
  }

 private:
  SliceReader& slices_;
};

}  // namespace kvcompress
