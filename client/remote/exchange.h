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
#include "proto/wire/convert.h"
#include "proto/wire/grpc/message.h"
#include "proto/wire/methods.h"

namespace kvcompress {

inline v1::CompressHeader HeaderOf(const CompressJob& job, bool to_buffers) {
  return MakeHeader(job.tensor, job.codec, to_buffers);
}
inline v1::DecompressHeader HeaderOf(const DecompressJob& job, bool to_buffers) {
  return MakeHeader(job.name, to_buffers);
}

// The most bytes that come back; empty where that is not known beforehand.
std::optional<uint64_t> MaxOutputBytes(const CompressJob& job);
std::optional<uint64_t> MaxOutputBytes(const DecompressJob& job);

// The most bytes, in either direction, for which a job is a message instead of a stream.
inline constexpr uint64_t kMaxTensorCallBytes = uint64_t{256} << 10;

template <typename Job>
bool FitsTensorCall(const Job& job) {
  return job.source->size() <= kMaxTensorCallBytes && MaxOutputBytes(job).value_or(UINT64_MAX) <= kMaxTensorCallBytes;
}

// One attempt at a job that FitsTensorCall. It may end well without an answer; `delivery` tells.
template <typename Replies>
StreamEnd CallTensor(const std::shared_ptr<grpc::Channel>& channel, absl::Time deadline, std::string_view address,
                     const typename Replies::Job& job, typename Replies::Sink& sink, Delivery& delivery,
                     SliceReader& slices) {
  using Direction = typename Replies::Direction;
  absl::StatusOr<Slice> input = slices.Read(*job.source, 0, static_cast<size_t>(job.source->size()));
  if (!input.ok()) return {input.status(), {}, {}};
  typename Direction::TensorRequest head;
  *head.mutable_header() = HeaderOf(job, /*to_buffers=*/false);
  grpc::ByteBuffer request = PayloadMessage(Direction::kTensorInput, {*std::exchange(input, absl::CancelledError())},
                                            head.SerializeAsString());
  grpc::ByteBuffer reply;
  StreamEnd end = CallUnary(channel, MethodPath<typename Direction::TensorRequest>(), deadline, request, reply);
  request.Clear();
  if (!end.status.ok() || !reply.Valid()) return end;
  Replies replies(address, sink, delivery);
  end.handler = [&]() -> absl::Status {
    const std::optional<SplitMessage> split = SplitAtPayload(reply, Direction::kTensorOutput);
    typename Direction::TensorResponse response;
    if (!(split ? response.ParseFromString(split->head) : ParseMessage(reply, response))) {
      return replies.WrongReply("its message cannot be parsed");
    }
    KVC_RETURN_IF_ERROR(replies.OnDescription(response));
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

// One attempt at `jobs`: a subclass sends them, this takes what comes back.
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
    if (response.payload_case() == Direction::kSharedOutput) return OnSharedOutput(Direction::SharedOutput(response));
    // Output in an encoding that is valid, but not the one that PayloadOf knows.
    if (response.payload_case() == Direction::kOutput) return OnOutput(AsBytes(Direction::Output(response)));
    return replies_.OnDescription(response);
  }

  size_t done() const { return done_; }

 protected:
  std::span<const Job> jobs() const { return jobs_; }

  absl::Status OnOutput(ByteSpan bytes) {
    if (done_ == jobs_.size()) return WrongReply("it sent more tensors than it was given");
    KVC_RETURN_IF_ERROR(CheckDeadline(deadline_));
    return replies_.OnBytes(jobs_[done_], bytes);
  }

  absl::Status WrongReply(std::string_view what) const { return replies_.WrongReply(what); }

 private:
  // Of streams that use shared memory.
  virtual absl::Status OnSharedOutput(const v1::SharedMemoryRange&) {
    return WrongReply("it speaks of shared memory that it was not given");
  }
  virtual absl::Status OnReleased(uint64_t) { return WrongReply("it speaks of shared memory that it was not given"); }
  virtual absl::Status OnTensorEnd() { return absl::OkStatus(); }

  const std::span<const Job> jobs_;
  const absl::Time deadline_;
  Replies replies_;
  size_t done_ = 0;  // jobs
};

// Sends the bytes in messages.
template <typename Replies>
class ByteExchange final : public Exchange<Replies> {
 public:
  using typename Exchange<Replies>::Direction;
  using typename Exchange<Replies>::Job;
  using typename Exchange<Replies>::Sink;
  using typename Exchange<Replies>::Request;
  using typename Exchange<Replies>::Outgoing;

  ByteExchange(std::string_view address, std::span<const Job> jobs, absl::Time deadline, Sink& sink, Delivery& delivery,
               SliceReader& slices)
      : Exchange<Replies>(address, jobs, deadline, sink, delivery), slices_(slices) {}

  absl::StatusOr<std::optional<Outgoing>> Next() override {
    const Job& job = this->jobs()[sending_];
    Outgoing next;
    if (!std::exchange(header_sent_, true)) {
      Request request;
      *request.mutable_header() = HeaderOf(job, /*to_buffers=*/false);
      KVC_RETURN_IF_ERROR(SerializeMessage(request, next.message));
    } else {
      const size_t count = std::min<uint64_t>(kMaxPayloadBytes, job.source->size() - sent_bytes_);
      KVC_ASSIGN_OR_RETURN(Slice slice, slices_.Read(*job.source, sent_bytes_, count));
      next.message = PayloadMessage(Direction::kInput, {std::move(slice)});
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
