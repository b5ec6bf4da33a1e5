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

using RawReactor = grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>;

constexpr size_t kMaxCapabilitiesBytes = size_t{1} << 20;

// A stream that is not let in.
class Refusal final : public RawReactor {
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
  return ClientOf(context, !daemon_options_.token_file.empty());
}

template <typename Session>
RawReactor* Service::Start(grpc::CallbackServerContext* context) {
  absl::StatusOr<Admission::Ticket> ticket = admission_.AdmitStream(Client(*context));
  if (!ticket.ok()) return new Refusal(context, MethodName<typename Session::Request>(), metrics_, ticket.status());
  return new StreamReactor<Session>(context, metrics_, pool_, options_, *std::move(ticket));
}

template <typename Call>
grpc::ServerUnaryReactor* Service::StartTensor(grpc::CallbackServerContext* context, const grpc::ByteBuffer& request,
                                               grpc::ByteBuffer* response) {
  return new TensorReactor<Call>(context, request, response, Client(*context), pool_, options_, admission_, metrics_);
}

RawReactor* Service::Compress(grpc::CallbackServerContext* context) { return Start<CompressSession>(context); }

RawReactor* Service::Decompress(grpc::CallbackServerContext* context) { return Start<DecompressSession>(context); }

grpc::ServerUnaryReactor* Service::CompressTensor(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                                  grpc::ByteBuffer* response) {
  return StartTensor<CompressTensorCall>(context, *request, response);
}

grpc::ServerUnaryReactor* Service::DecompressTensor(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* request, grpc::ByteBuffer* response) {
  return StartTensor<DecompressTensorCall>(context, *request, response);
}

template <typename Request, typename Answer>
grpc::ServerUnaryReactor* Service::AnswerAtOnce(grpc::CallbackServerContext* context, const grpc::ByteBuffer& request,
                                                size_t max_bytes, const Answer& answer, grpc::ByteBuffer& response) {
  CallRecord record(context, MethodName<Request>(), metrics_);
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
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

grpc::ServerUnaryReactor* Service::Metrics(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                           grpc::ByteBuffer* response) {
  const auto answer = [this](const v1::MetricsRequest&) -> absl::StatusOr<v1::MetricsResponse> {
    return metrics_.ToMessage();
  };
  return AnswerAtOnce<v1::MetricsRequest>(context, *request, kMaxRequestBytes, answer, *response);
}

grpc::ServerUnaryReactor* Service::Capabilities(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                                grpc::ByteBuffer* response) {
  const auto answer = [this](const v1::CapabilitiesRequest& parsed) {
    return DescribeCapabilities(daemon_options_, parsed);
  };
  return AnswerAtOnce<v1::CapabilitiesRequest>(context, *request, kMaxCapabilitiesBytes, answer, *response);
}

RawReactor* Service::SharedMemory(grpc::CallbackServerContext* context) {
  return shared_memory_.Start(context, Client(*context));
}

}  // namespace kvcompress
