#include "server/rpc/service.h"

#include <utility>

#include "core/base/status_macros.h"
#include "proto/wire/grpc/message.h"
#include "proto/wire/methods.h"
#include "server/rpc/call.h"
#include "server/rpc/capabilities.h"
#include "server/rpc/stream_reactor.h"
#include "server/rpc/tensor_reactor.h"

namespace kvcompress {
namespace {

constexpr size_t kMaxCapabilitiesBytes = size_t{1} << 20;

// A stream that is not let in.
class Refusal final : public Service::Streaming {
 public:
  Refusal(grpc::CallbackServerContext* context, std::string_view method, Metrics& metrics, absl::Status status)
      : record_(context, method, metrics), status_(std::move(status)) {
    AddPushback(status_, *context);
    Finish(ToGrpcStatus(status_));
  }

  void OnDone() override {
    record_.End(status_, {});
    delete this;
  }

 private:
  CallRecord record_;
  const absl::Status status_;
};

}  // namespace

std::string Service::Client(const grpc::CallbackServerContext& context) const {
  return ClientOf(
      context, {.certificate = !daemon_options_.tls_client_ca.empty(), .token = !daemon_options_.token_file.empty()});
}

template <typename Session>
Service::Streaming* Service::Start(Context* context) {
  absl::StatusOr<Admission::Ticket> ticket = admission_.AdmitStream(Client(*context));
  if (!ticket.ok()) return new Refusal(context, MethodName<typename Session::Request>(), metrics_, ticket.status());
  return new StreamReactor<Session>(context, metrics_, pool_, options_, *std::move(ticket), guard_, idle_watch_,
                                    receiving_, admission_);
}

template <typename Call>
Service::Unary* Service::StartTensor(Context* context, const Message& request, Message* response) {
  return new TensorReactor<Call>(context, request, response, Client(*context), pool_, options_, admission_, metrics_,
                                 guard_, idle_watch_);
}

template <typename Request>
Service::Unary* Service::AnswerAtOnce(Context* context, const Message& request, size_t max_bytes, const auto& answer,
                                      Message& response) {
  CallRecord record(context, MethodName<Request>(), metrics_);
  MemoryGuard::Count(*guard_.DeliveredTo(record.peer()), request.Length());
  const absl::Status status = [&]() -> absl::Status {
    KVC_RETURN_IF_ERROR(admission_.AdmitCall(Client(*context)));
    Request parsed;
    KVC_RETURN_IF_ERROR(ParseRequest(request, max_bytes, 0, parsed));
    KVC_ASSIGN_OR_RETURN(const auto message, answer(parsed));
    return SerializeMessage(message, response);
  }();
  record.End(status, {});
  AddPushback(status, *context);
  // gRPC's own reactor ends a call without another thread.
  Unary* const reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

Service::Streaming* Service::Compress(Context* context) { return Start<CompressSession>(context); }

Service::Streaming* Service::Decompress(Context* context) { return Start<DecompressSession>(context); }

Service::Unary* Service::CompressTensor(Context* context, const Message* request, Message* response) {
  return StartTensor<CompressTensorCall>(context, *request, response);
}

Service::Unary* Service::DecompressTensor(Context* context, const Message* request, Message* response) {
  return StartTensor<DecompressTensorCall>(context, *request, response);
}

Service::Unary* Service::Metrics(Context* context, const Message* request, Message* response) {
  const auto answer = [this](const auto&) { return absl::StatusOr<v1::MetricsResponse>(metrics_.ToMessage()); };
  return AnswerAtOnce<v1::MetricsRequest>(context, *request, kMaxRequestBytes, answer, *response);
}

Service::Unary* Service::Capabilities(Context* context, const Message* request, Message* response) {
  const auto answer = [this](const auto& parsed) {
    return DescribeCapabilities(daemon_options_, options_.limits.environment.artifacts, parsed);
  };
  return AnswerAtOnce<v1::CapabilitiesRequest>(context, *request, kMaxCapabilitiesBytes, answer, *response);
}

Service::Streaming* Service::SharedMemory(Context* context) { return shared_memory_.Start(context, Client(*context)); }

}  // namespace kvcompress
