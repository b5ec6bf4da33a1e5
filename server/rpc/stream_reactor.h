#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "core/base/serializer.h"
#include "proto/wire/grpc/message.h"
#include "proto/wire/methods.h"
#include "server/net/memory_guard.h"
#include "server/rpc/call.h"
#include "server/rpc/idle_watch.h"
#include "server/rpc/receiving_threads.h"
#include "server/session/session.h"

namespace kvcompress {

// Moves messages between a stream and its session: one read and one write are in flight at a time. Every reaction, and
// every wake-up from the pool, calls Pump(), which does what the session allows at the moment. Reactions pass on, as
// slices, what gRPC has received and what the codec has made. The codec's work is the pool's, but for short blocks:
// those the reaction to a message does itself, when it may.
//
// The end: Pump() sends the status when the session is done, which is after its last job in the pool, and no write is
// in flight. Nothing touches a deleted reactor: gRPC calls OnDone after all other reactions have returned, and ~Session
// waits for a pool thread that is still in Pump().
//
// A stream that waits for its client alone, for longer than the watch lets it, ends: with DEADLINE_EXCEEDED if no
// message comes, cancelled if no response is taken. What shows that a client moves is a message that has come whole, or
// a response that it has taken whole: gRPC tells no less.
template <typename Session>
class StreamReactor final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                            public IdleWatch::Watched {
 public:
  using Direction = typename Session::Direction;
  using Request = typename Direction::Request;
  using Response = typename Direction::Response;
  using Clock = IdleWatch::Clock;

  StreamReactor(grpc::CallbackServerContext* context, Metrics& metrics, ThreadPool& pool, const SessionOptions& options,
                Admission::Ticket ticket, MemoryGuard& guard, IdleWatch& watch, ReceivingThreads& receiving,
                const Admission& admission)
      : context_(context),
        metrics_(metrics),
        watch_(watch),
        receiving_(receiving),
        admission_(admission),
        record_(context, MethodName<Request>(), metrics),
        delivered_(guard.DeliveredTo(record_.peer())),
        session_(pool, options, std::move(ticket), metrics, [this] { Pump(); }) {
    Pump();
    watch_.Add(this);
  }

  void OnReadDone(bool ok) override {
    bool works = false;
    if (ok) {
      metrics_.OnStage(Metrics::Stage::kRead, SecondsSince(read_start_));
      MemoryGuard::Count(*delivered_, incoming_.Length());
      works = Take(incoming_);
      incoming_.Clear();
    } else if (context_->IsCancelled()) {
      session_.Cancel();
    } else {
      half_close_ = Clock::now();
      session_.HalfClose();
    }
    reading_ = false;
    Pump();
    if (!works) return;
    // After the next read has begun, which another of gRPC's threads goes on with.
    session_.WorkOnHeld();
    receiving_.EndWork();
  }

  void OnWriteDone(bool ok) override {
    if (ok) {
      metrics_.OnStage(Metrics::Stage::kWrite, SecondsSince(write_start_));
    } else {
      session_.Cancel();
    }
    writing_ = false;
    Pump();
  }

  void OnCancel() override {
    session_.Cancel();
    Pump();
  }

  void OnDone() override {
    watch_.Remove(this);
    record_.End(session_.status(), session_.totals());
    delete this;
  }

  void EndIfIdle() override {
    const bool is_stuck = (writing_ || finished_) && watch_.IsStuck(moved_);
    // While input is held because output waits for a buffer, nothing is read: the buffer may never come.
    const bool waits = reading_ || session_.waits_for_buffer();
    const bool is_silent = waits && !writing_ && !finished_ && watch_.IsIdle(moved_);
    if ((!is_stuck && !is_silent) || session_.is_working() || is_idle_.exchange(true)) return;
    metrics_.OnReject(RejectReason::kStreamIdle);
    if (is_silent) {
      session_.End(IdleStatus());
      Pump();
    } else {
      context_->TryCancel();  // a status would wait behind what the client does not take
    }
  }

 private:
  absl::Status IdleStatus() const {
    return absl::DeadlineExceededError(
        absl::StrFormat("the stream has stood still for longer than %d ms: no message has come whole, although it was "
                        "the client's turn",
                        watch_.timeout().count()));
  }

  static double SecondsSince(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  void Pump() {
    pump_.Run([this] { Step(); });
  }

  void Step() {
    if (finished_) return;
    moved_ = Clock::now();
    if (!writing_) StartNextWrite();
    if (finished_) return;
    if (!reading_ && session_.wants_input()) {
      reading_ = true;
      read_start_ = Clock::now();
      this->StartRead(&incoming_);
    }
    if (writing_ || !session_.done()) return;
    finished_ = true;
    const absl::Status status = session_.status();
    session_.Settle();
    AddPushback(status, *context_);
    this->Finish(ToGrpcStatus(status));
  }

  // Returns whether this thread works on what the session may hold.
  bool Take(const grpc::ByteBuffer& message) {
    if (std::optional<std::vector<Slice>> payload = PayloadOf(message, Direction::kInput)) {
      const bool works = receiving_.BeginWork(admission_.streams());
      works ? session_.PushAndHold(*std::move(payload)) : session_.Push(*std::move(payload));
      return works;
    }
    Request request;
    const absl::Status parsed = ParseRequest(message, kMaxHeadBytes, Direction::kInput, request);
    parsed.ok() ? session_.Push(std::move(request)) : session_.Fail(parsed);
    return false;
  }

  void StartNextWrite() {
    Outgoing<Response> outgoing;
    if (!session_.Pop(outgoing)) return;
    write_start_ = Clock::now();
    if (!outgoing.bytes.empty()) {
      outgoing_ = PayloadMessage(Direction::kOutput, outgoing.bytes, &outgoing.response);
    } else if (const absl::Status status = SerializeMessage(outgoing.response, outgoing_); !status.ok()) {
      return session_.Fail(status);
    }
    if (outgoing.response.has_stream()) {  // nothing follows but the status, which is OK then
      metrics_.OnStage(Metrics::Stage::kFinish, SecondsSince(half_close_));
      finished_ = true;
      session_.Settle();
      this->StartWriteAndFinish(&outgoing_, grpc::WriteOptions(), grpc::Status::OK);
      return;
    }
    writing_ = true;
    // A message goes out together with the one that follows at once. Not the first: gRPC sends the initial metadata
    // with it, and would not end the write before what follows has gone out.
    grpc::WriteOptions options;
    if (std::exchange(metadata_sent_, true) && session_.has_next()) options.set_buffer_hint();
    this->StartWrite(&outgoing_, options);
  }

  grpc::CallbackServerContext* const context_;
  Metrics& metrics_;
  IdleWatch& watch_;
  ReceivingThreads& receiving_;
  const Admission& admission_;
  CallRecord record_;
  const std::shared_ptr<DeliveredBytes> delivered_;  // of the connection

  Serializer pump_;
  // Set by Step, cleared by the reaction that ends the operation.
  std::atomic<bool> reading_ = false;
  std::atomic<bool> writing_ = false;
  std::atomic<Clock::time_point> moved_ = Clock::now();  // when Step was last asked
  std::atomic<bool> is_idle_ = false;                    // it has stood still, and therefore ends
  std::atomic<bool> finished_ = false;                   // the status is on its way
  // Step's own.
  bool metadata_sent_ = false;
  grpc::ByteBuffer incoming_;
  grpc::ByteBuffer outgoing_;
  Clock::time_point read_start_;
  Clock::time_point write_start_;
  Clock::time_point half_close_;

  Session session_;  // last: its destructor waits for calls into the members above
};

}  // namespace kvcompress
