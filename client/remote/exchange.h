#pragma once

#include <algorithm>
#include <deque>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
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
  grpc::ByteBuffer request =
      PayloadMessage(Direction::kTensorInput, {*std::exchange(input, absl::CancelledError())}, &head);
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

// The bytes of slices, from the first on.
class OutputReader {
 public:
  explicit OutputReader(const std::vector<Slice>& slices) : slices_(slices) {
    for (const Slice& slice : slices) left_ += slice.bytes.size();
  }

  uint64_t left() const { return left_; }
  // The next ones in one piece: at most `count`, which is not more than are left, and at least one.
  ByteSpan Take(uint64_t count) {
    while (at_ == slices_[index_].bytes.size()) {
      ++index_;
      at_ = 0;
    }
    const ByteSpan rest = slices_[index_].bytes.subspan(at_);
    const ByteSpan taken = rest.first(static_cast<size_t>(std::min<uint64_t>(count, rest.size())));
    at_ += taken.size();
    left_ -= taken.size();
    return taken;
  }

 private:
  const std::vector<Slice>& slices_;
  size_t index_ = 0;
  size_t at_ = 0;  // in slices_[index_]
  uint64_t left_ = 0;
};

// One attempt at `jobs`: a subclass sends them, this class takes what comes back. With `batches`, small jobs that
// follow one another are described in one message, and answered together.
template <typename Replies>
class Exchange : public StreamHandler {
 public:
  using Direction = typename Replies::Direction;
  using Job = typename Replies::Job;
  using Sink = typename Replies::Sink;
  using Request = typename Direction::Request;
  using Response = typename Direction::Response;

  Exchange(std::string_view address, std::span<const Job> jobs, absl::Time deadline, Sink& sink, Delivery& delivery,
           bool batches)
      : jobs_(jobs), deadline_(deadline), batches_(batches), replies_(address, sink, delivery) {}

  absl::Status Take(const grpc::ByteBuffer& reply) final {
    const std::optional<SplitMessage> split = SplitAtPayload(reply, Direction::kOutput);
    Response response;
    if (!(split ? response.ParseFromString(split->head) : ParseMessage(reply, response))) {
      return WrongReply("its message cannot be parsed");
    }
    if (split) return TakeMessage(response, split->payload);
    if (response.has_stream()) return absl::OkStatus();
    if (response.payload_case() == Response::kInputReleased) return OnReleased(response.input_released());
    if (response.payload_case() == Direction::kSharedOutput) {
      KVC_ASSIGN_OR_RETURN(const ByteSpan bytes, SharedOutput(Direction::SharedOutput(response)));
      return TakeOutput(response, {{bytes, nullptr}});
    }
    // Output in an encoding that is valid, but not the one that SplitAtPayload knows.
    if (response.payload_case() == Direction::kOutput) {
      return TakeMessage(response, {{AsBytes(Direction::Output(response)), nullptr}});
    }
    if (response.ended_size() > 0 || Replies::HasBegun(response, 0)) return TakeOutput(response, {});
    if (all_done()) return WrongReply("it sent more tensors than it was given");
    if (response.has_tensor()) return EndJob(response.tensor());
    return replies_.OnDescription(jobs_[done_], response);
  }

 protected:
  bool all_done() const { return done_ == jobs_.size(); }
  absl::Status WrongReply(std::string_view what) const { return replies_.WrongReply(what); }

  // How far the jobs are sent.
  bool all_sent() const { return sending_ == jobs_.size(); }
  // Whether the current job's header is, alone or in a batch.
  bool header_sent() const { return sending_ < described_; }
  // The current job's input, its size, where the daemon reads it by itself, and how much of it is sent.
  const ByteSource& source() const { return *jobs_[sending_].source; }
  uint64_t source_bytes() const { return InputBytes(jobs_[sending_]); }
  const v1::SharedMemoryRange* place() const { return PlaceOf(jobs_[sending_]); }
  uint64_t sent_bytes() const { return sent_bytes_; }

  // The header of the current job, or those of a batch that begins with it: they count as sent.
  Request SendHeader(bool to_buffers) {
    Request request;
    const size_t count = batches_ ? MakeBatch(to_buffers, *request.mutable_batch()) : 1;
    if (count == 1) *request.mutable_header() = HeaderOf(jobs_[sending_], to_buffers);
    described_ = sending_ + count;
    batch_ends_.push_back(described_);
    OnDescribed(jobs_.subspan(sending_, count));
    Sent(0);
    return request;
  }
  // Counts bytes of input that are sent. Returns whether they were the job's last.
  bool Sent(uint64_t bytes) {
    sent_bytes_ += bytes;
    if (sent_bytes_ < source_bytes()) return false;
    for (; header_sent() && sent_bytes_ == source_bytes(); sent_bytes_ = 0) ++sending_;
    return true;
  }

 private:
  // Whether output may come in messages of bytes.
  virtual bool takes_messages() const { return true; }
  // Of streams that use shared memory: the bytes of the range.
  virtual absl::StatusOr<ByteSpan> SharedOutput(const v1::SharedMemoryRange&) {
    return WrongReply("it speaks of shared memory that it was not given");
  }
  virtual absl::Status OnReleased(uint64_t) { return WrongReply("it speaks of shared memory that it was not given"); }
  // What comes of these jobs, of one or of a batch, will begin a buffer of its own.
  virtual void OnDescribed(std::span<const Job>) {}
  // It has all come.
  virtual void OnOutputEnd() {}

  // Fills in the headers of the current job and of those that go with it; returns how many.
  size_t MakeBatch(bool to_buffers, auto& batch) const {
    constexpr uint64_t kMaxJobBytes = uint64_t{4} << 20;
    constexpr size_t kMaxBatchHeaderBytes = size_t{48} << 10;
    constexpr size_t kMaxJobs = 256;
    static_assert(kMaxJobs <= kMaxBatchTensors);
    size_t header_bytes = 0;
    for (size_t i = sending_; i < std::min(jobs_.size(), sending_ + kMaxJobs); ++i) {
      const Job& job = jobs_[i];
      if (InputBytes(job) == 0 || InputBytes(job) > kMaxJobBytes) break;
      auto header = HeaderOf(job, to_buffers);
      header_bytes += header.ByteSizeLong();
      if (header_bytes > kMaxBatchHeaderBytes) break;
      batch.mutable_headers()->Add(std::move(header));
    }
    return std::max(1, batch.headers_size());
  }

  absl::Status TakeMessage(const Response& response, const std::vector<Slice>& output) {
    return takes_messages() ? TakeOutput(response, output) : WrongReply("it sent bytes that were to go to buffers");
  }

  // Takes a part of the answers: what it says of tensors, and output of the current job and of those that follow it.
  absl::Status TakeOutput(const Response& response, const std::vector<Slice>& output) {
    OutputReader bytes(output);
    int begun = 0;
    for (const v1::TensorReport& report : response.ended()) {
      if (all_done()) return WrongReply("it sent more tensors than it was given");
      KVC_RETURN_IF_ERROR(replies_.OnBegun(jobs_[done_], response, begun));
      const uint64_t size = Replies::OutputBytes(report);
      if (size < came_bytes_ || size - came_bytes_ > bytes.left()) {
        return WrongReply(absl::StrFormat("its report on tensor \"%s\" does not fit what it sent", report.name()));
      }
      KVC_RETURN_IF_ERROR(TakeBytes(bytes, size - came_bytes_));
      KVC_RETURN_IF_ERROR(EndJob(report));
    }
    if (bytes.left() == 0 && !Replies::HasBegun(response, begun)) return absl::OkStatus();
    if (all_done()) return WrongReply("it sent more tensors than it was given");
    KVC_RETURN_IF_ERROR(replies_.OnBegun(jobs_[done_], response, begun));
    KVC_RETURN_IF_ERROR(TakeBytes(bytes, bytes.left()));
    return Replies::HasBegun(response, begun) ? WrongReply("its messages are out of order") : absl::OkStatus();
  }

  // Hands over so many bytes of the current job's output.
  absl::Status TakeBytes(OutputReader& bytes, uint64_t count) {
    came_bytes_ += count;
    while (count > 0) {
      const ByteSpan piece = bytes.Take(count);
      KVC_RETURN_IF_ERROR(CheckDeadline(deadline_));
      KVC_RETURN_IF_ERROR(replies_.OnBytes(jobs_[done_], piece));
      count -= piece.size();
    }
    return absl::OkStatus();
  }

  absl::Status EndJob(const v1::TensorReport& report) {
    KVC_RETURN_IF_ERROR(replies_.OnReport(jobs_[done_++], report));
    came_bytes_ = 0;
    if (!batch_ends_.empty() && batch_ends_.front() > done_) return absl::OkStatus();
    if (!batch_ends_.empty()) batch_ends_.pop_front();
    OnOutputEnd();
    return absl::OkStatus();
  }

  const std::span<const Job> jobs_;
  const absl::Time deadline_;
  const bool batches_;
  Replies replies_;
  size_t done_ = 0;                // jobs
  uint64_t came_bytes_ = 0;        // of the output of the one that follows these
  size_t sending_ = 0;             // index of the job
  uint64_t sent_bytes_ = 0;        // of it
  size_t described_ = 0;           // jobs whose headers are sent
  std::deque<size_t> batch_ends_;  // of what is described and not done, batches and single jobs: jobs up to its end
};

// Sends the bytes in messages, but for those that the daemon reads by itself.
template <typename Replies>
class ByteExchange final : public Exchange<Replies> {
 public:
  using Base = Exchange<Replies>;
  using typename Base::Outgoing;

  ByteExchange(std::string_view address, std::span<const typename Base::Job> jobs, absl::Time deadline,
               typename Base::Sink& sink, Delivery& delivery, SliceReader& slices, bool batches = false)
      : Base(address, jobs, deadline, sink, delivery, batches), slices_(slices) {}

  absl::StatusOr<std::optional<Outgoing>> Next() override {
    Outgoing next;
    if (!this->header_sent()) {
      KVC_RETURN_IF_ERROR(SerializeMessage(this->SendHeader(/*to_buffers=*/false), next.message));
    } else if (const v1::SharedMemoryRange* place = this->place()) {
      typename Base::Request request;
      Base::Direction::SharedInput(request) = *place;
      KVC_RETURN_IF_ERROR(SerializeMessage(request, next.message));
      this->Sent(this->source_bytes());
    } else {
      KVC_ASSIGN_OR_RETURN(next.message, NextInput());
    }
    next.last = this->all_sent();
    next.followed = !next.last;
    return next;
  }

 private:
  // As much of the current job and of those described with it as a message takes.
  absl::StatusOr<grpc::ByteBuffer> NextInput() {
    std::vector<Slice> input;
    for (uint64_t bytes = 0; this->header_sent() && this->place() == nullptr && bytes < kMaxPayloadBytes;) {
      const size_t count = std::min(kMaxPayloadBytes - bytes, this->source_bytes() - this->sent_bytes());
      KVC_ASSIGN_OR_RETURN(Slice slice, slices_.Read(this->source(), this->sent_bytes(), count));
      input.push_back(std::move(slice));
      this->Sent(count);
      bytes += count;
    }
    return PayloadMessage(Base::Direction::kInput, input);
  }

  // Of input that the daemon has read by itself; nothing waits for it.
  absl::Status OnReleased(uint64_t) override { return absl::OkStatus(); }

  SliceReader& slices_;
};

}  // namespace kvcompress
