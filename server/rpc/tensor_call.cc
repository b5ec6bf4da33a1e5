#include "server/rpc/tensor_call.h"

#include <optional>
#include <utility>
#include <vector>

#include "core/base/status_macros.h"
#include "proto/wire/grpc/message.h"
#include "proto/wire/methods.h"
#include "server/rpc/call.h"
#include "server/session/tensor_call.h"

namespace kvcompress {
namespace {

// A call without its reactor.
template <typename Call>
class RecordedCall {
 public:
  using Direction = typename Call::Direction;
  using Request = typename Call::Request;

  RecordedCall(grpc::CallbackServerContext* context, grpc::ByteBuffer* response, Metrics& metrics)
      : context_(context),
        response_(response),
        metrics_(metrics),
        record_(context, MethodName<Request>(), metrics, LogLevel::kDebug) {}

  absl::Status Start(const grpc::ByteBuffer& message, std::string client, const TensorCallEnvironment& environment) {
    KVC_ASSIGN_OR_RETURN(ticket_, environment.admission.AdmitStream(std::move(client)));
    Request request;
    std::vector<Slice> input;
    std::optional<SplitMessage> split = SplitAtPayload(message, Direction::kTensorInput);
    if (split && request.ParseFromString(split->head)) {
      input = std::move(split->payload);
    } else {
      KVC_RETURN_IF_ERROR(ParseRequest(message, kMaxHeadBytes, Direction::kTensorInput, request));
      auto owner = std::make_shared<const std::string>(std::move(Direction::Input(request)));
      input = {{AsBytes(*owner), owner}};
    }
    return call_.Start(request, std::move(input), environment.options, ticket_);
  }

  bool is_short() const { return call_.is_short(); }

  // Fills the response.
  absl::Status Run() {
    if (context_->IsCancelled()) return absl::CancelledError("the client has cancelled");
    typename Call::Response head;
    KVC_ASSIGN_OR_RETURN(Slice output, call_.Run(metrics_, head));
    *response_ = PayloadMessage(Direction::kTensorOutput, {std::move(output)}, head.SerializeAsString());
    return absl::OkStatus();
  }

  // The status to finish with. From here on the call counts against no limit of streams; the memory of its answer stays
  // its own until it is destroyed.
  grpc::Status End(const absl::Status& status) {
    ticket_.SettleStream();
    AddPushback(status, *context_);
    record_.End(status, call_.totals());
    return ToGrpcStatus(status);
  }

 private:
  grpc::CallbackServerContext* const context_;
  grpc::ByteBuffer* const response_;
  Metrics& metrics_;
  CallRecord record_;
  Admission::Ticket ticket_;
  Call call_;
};

// A call whose work is a job of the pool.
template <typename Call>
class PooledCall final : public grpc::ServerUnaryReactor {
 public:
  PooledCall(ThreadPool& pool, std::unique_ptr<RecordedCall<Call>> call) : call_(std::move(call)), queue_(pool) {
    // Finish may be followed by OnDone on another thread: nothing is touched after it.
    queue_.Push([this] { this->Finish(call_->End(call_->Run())); });
  }

  void OnDone() override { delete this; }

 private:
  const std::unique_ptr<RecordedCall<Call>> call_;
  ThreadPool::Queue queue_;
};

// A call that has ended in the reaction to its message. It stays until gRPC has sent the answer, whose memory it is
// charged for, and then ends without another thread, like gRPC's own reactor for such calls.
template <typename Call>
class InlineCall final : public grpc::ServerUnaryReactor {
 public:
  InlineCall(std::unique_ptr<RecordedCall<Call>> call, const absl::Status& status) : call_(std::move(call)) {
    Finish(call_->End(status));
  }

  void OnDone() override { delete this; }

 private:
  bool InternalInlineable() override { return true; }

  const std::unique_ptr<RecordedCall<Call>> call_;
};

}  // namespace

template <typename Call>
grpc::ServerUnaryReactor* StartTensorCall(grpc::CallbackServerContext* context, const grpc::ByteBuffer& request,
                                          grpc::ByteBuffer* response, std::string client,
                                          const TensorCallEnvironment& environment) {
  auto call = std::make_unique<RecordedCall<Call>>(context, response, environment.metrics);
  absl::Status status = call->Start(request, std::move(client), environment);
  if (status.ok() && !call->is_short()) return new PooledCall<Call>(environment.pool, std::move(call));
  if (status.ok()) status = call->Run();
  return new InlineCall<Call>(std::move(call), status);
}

template grpc::ServerUnaryReactor* StartTensorCall<CompressTensorCall>(grpc::CallbackServerContext*,
                                                                       const grpc::ByteBuffer&, grpc::ByteBuffer*,
                                                                       std::string, const TensorCallEnvironment&);
template grpc::ServerUnaryReactor* StartTensorCall<DecompressTensorCall>(grpc::CallbackServerContext*,
                                                                         const grpc::ByteBuffer&, grpc::ByteBuffer*,
                                                                         std::string, const TensorCallEnvironment&);

}  // namespace kvcompress
