#pragma once

#include <google/protobuf/arena.h>
#include <grpcpp/grpcpp.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "core/base/status_macros.h"
#include "core/base/thread_pool.h"
#include "proto/wire/grpc/message.h"
#include "proto/wire/methods.h"
#include "server/net/memory_guard.h"
#include "server/rpc/call.h"
#include "server/rpc/idle_watch.h"
#include "server/session/tensor_call.h"

namespace kvcompress {

// A call for one tensor: `Call` is CompressTensorCall or DecompressTensorCall. A small tensor with a fast codec is done
// in the constructor, in the reaction to its message, which is sooner than handing it to another thread; any other is a
// job of the pool. The reactor stays until gRPC has sent the answer, whose memory the call is charged for; a client
// that does not take it within the watch's time loses it.
template <typename Call>
class TensorReactor final : public grpc::ServerUnaryReactor, public IdleWatch::Watched {
 public:
  // `request` and `response` are the call's, `client` is ClientOf's; what is given must outlive the call.
  TensorReactor(grpc::CallbackServerContext* context, const grpc::ByteBuffer& request, grpc::ByteBuffer* response,
                std::string client, ThreadPool& pool, const SessionOptions& options, Admission& admission,
                Metrics& metrics, MemoryGuard& guard, IdleWatch& watch)
      : context_(context),
        response_(response),
        metrics_(metrics),
        watch_(watch),
        record_(context, MethodName<typename Call::Request>(), metrics, LogLevel::kDebug) {
    MemoryGuard::Count(*guard.DeliveredTo(record_.peer()), request.Length());
    const absl::Status status = Start(request, std::move(client), options, admission);
    if (status.ok() && !call_.is_short()) {
      queue_.emplace(pool, ticket_.client()).Push([this] { End(Run()); });
    } else {
      End(status.ok() ? Run() : status);
    }
  }

  void OnDone() override {
    watch_.Remove(this);
    delete this;
  }

  void EndIfIdle() override {
    if (!watch_.IsStuck(ended_) || std::exchange(is_idle_, true)) return;
    metrics_.OnReject(RejectReason::kStreamIdle);
    context_->TryCancel();
  }

 private:
  using Direction = typename Call::Direction;

  // Lets a call that ended in its reaction end without another thread, like gRPC's own reactor for such calls.
  bool InternalInlineable() override { return !queue_; }

  absl::Status Start(const grpc::ByteBuffer& message, std::string client, const SessionOptions& options,
                     Admission& admission) {
    KVC_ASSIGN_OR_RETURN(ticket_, admission.AdmitStream(std::move(client)));
    typename Call::Request request;
    std::optional<SplitMessage> split = SplitAtPayload(message, Direction::kTensorInput);
    if (split && (call_.Recall(split->head, options) || request.ParseFromString(split->head))) {
      KVC_RETURN_IF_ERROR(call_.Start(request, std::move(split->payload), options, ticket_));
      call_.Keep(split->head, options);
      return absl::OkStatus();
    }
    KVC_RETURN_IF_ERROR(ParseRequest(message, kMaxHeadBytes, Direction::kTensorInput, request));
    auto owner = std::make_shared<const std::string>(std::move(Direction::Input(request)));
    return call_.Start(request, {{AsBytes(*owner), owner}}, options, ticket_);
  }

  // Fills the response.
  absl::Status Run() {
    if (context_->IsCancelled()) return absl::CancelledError("the client has cancelled");
    // Its messages lie here together, which takes less time than an allocation each.
    alignas(std::max_align_t) char block[2048];
    google::protobuf::Arena arena(block, sizeof(block));
    auto& head = *google::protobuf::Arena::CreateMessage<typename Call::Response>(&arena);
    KVC_ASSIGN_OR_RETURN(Slice output, call_.Run(metrics_, head));
    *response_ = PayloadMessage(Direction::kTensorOutput, {std::move(output)}, &head);
    return absl::OkStatus();
  }

  // Nothing may be touched after it: OnDone may follow on another thread.
  void End(const absl::Status& status) {
    ticket_.SettleStream();
    AddPushback(status, *context_);
    record_.End(status, call_.totals());
    ended_ = IdleWatch::Clock::now();
    watch_.Add(this);
    Finish(ToGrpcStatus(status));
  }

  grpc::CallbackServerContext* const context_;
  grpc::ByteBuffer* const response_;
  Metrics& metrics_;
  IdleWatch& watch_;
  CallRecord record_;
  Admission::Ticket ticket_;
  Call call_;
  IdleWatch::Clock::time_point ended_;      // when the answer went to gRPC
  bool is_idle_ = false;                    // the watch's own: its client does not take the answer
  std::optional<ThreadPool::Queue> queue_;  // of a call that is a job of the pool
};

}  // namespace kvcompress
