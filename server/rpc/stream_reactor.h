#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <utility>
#include <vector>

#include "core/base/serializer.h"
#include "proto/wire/grpc/message.h"
#include "proto/wire/methods.h"
#include "server/rpc/call.h"
#include "server/session/session.h"

namespace kvcompress {

// Moves messages between a stream and its session: one read and one write are in flight at a time. Every reaction, and
// every wake-up from the pool, calls Pump(), which does what the session allows at the moment. The codec's work is the
// pool's; reactions pass on, as slices, what gRPC has received and what the codec has made.
//
// The end: Pump() sends the status when the session is done, which is after its last job in the pool, and no write is
// in flight. Nothing touches a deleted reactor: gRPC calls OnDone after all other reactions have returned, and ~Session
// waits for a pool thread that is still in Pump().
template <typename Session>
class StreamReactor final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  using Direction = typename Session::Direction;
  using Request = typename Direction::Request;
  using Response = typename Direction::Response;

  StreamReactor(grpc::CallbackServerContext* context, Metrics& metrics, ThreadPool& pool, const SessionOptions& options,
                Admission::Ticket ticket)
      : context_(context),
        metrics_(metrics),
        record_(context, MethodName<Request>(), metrics),
        session_(pool, options, std::move(ticket), metrics, [this] { Pump(); }) {
    Pump();
  }

  void OnReadDone(bool ok) override {
    if (ok) {
      metrics_.OnStage(Metrics::Stage::kRead, SecondsSince(read_start_));
      Take(incoming_);
      incoming_.Clear();
    } else if (context_->IsCancelled()) {
      session_.Cancel();
    } else {
      half_close_ = Clock::now();
      session_.HalfClose();
    }
    reading_ = false;
    Pump();
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
    record_.End(session_.status(), session_.totals());
    delete this;
  }

 private:
  using Clock = std::chrono::steady_clock;

  static double SecondsSince(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  void Pump() {
    pump_.Run([this] { Step(); });
  }

  void Step() {
    if (finished_) return;
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

  void Take(const grpc::ByteBuffer& message) {
    if (std::optional<std::vector<Slice>> payload = PayloadOf(message, Direction::kInput)) {
      return session_.Push(*std::move(payload));
    }
    Request request;
    const absl::Status parsed = ParseRequest(message, kMaxHeadBytes, Direction::kInput, request);
    parsed.ok() ? session_.Push(std::move(request)) : session_.Fail(parsed);
  }

  void StartNextWrite() {
    Outgoing<Response> outgoing;
    if (!session_.Pop(outgoing)) return;
    write_start_ = Clock::now();
    if (!outgoing.bytes.empty()) {
      outgoing_ = PayloadMessage(Direction::kOutput, outgoing.bytes);
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
  CallRecord record_;

  Serializer pump_;
  // Set by Step, cleared by the reaction that ends the operation.
  std::atomic<bool> reading_ = false;
  std::atomic<bool> writing_ = false;
  // Step's own.
  bool metadata_sent_ = false;
  bool finished_ = false;  // the status is on its way
  grpc::ByteBuffer incoming_;
  grpc::ByteBuffer outgoing_;
  Clock::time_point read_start_;
  Clock::time_point write_start_;
  Clock::time_point half_close_;

  Session session_;  // last: its destructor waits for calls into the members above
};

}  // namespace kvcompress
