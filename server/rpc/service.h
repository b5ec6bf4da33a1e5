#pragma once

#include <grpc/support/cpu.h>

#include "core/base/thread_pool.h"
#include "kvcompress/v1/kvcompress.grpc.pb.h"
#include "server/config/options.h"
#include "server/net/memory_guard.h"
#include "server/rpc/idle_watch.h"
#include "server/rpc/receiving_threads.h"
#include "server/rpc/shared_memory_streams.h"
#include "server/session/admission.h"
#include "server/session/session.h"
#include "server/telemetry/metrics.h"

namespace kvcompress {

// The generated service with these of its methods raw, which are the WithRawCallbackMethod_* of v1::KvCompression: they
// take and give messages as gRPC has them, unparsed.
template <template <typename> class... Raw>
struct RawMethods {
  using Service = v1::KvCompression::Service;
};
template <template <typename> class Raw, template <typename> class... Others>
struct RawMethods<Raw, Others...> {
  using Service = Raw<typename RawMethods<Others...>::Service>;
};

// How many methods a service of such layers has.
template <typename Service>
inline constexpr size_t kMethodLayers = 0;
template <template <typename> class Method, typename Base>
inline constexpr size_t kMethodLayers<Method<Base>> = 1 + kMethodLayers<Base>;

using RawService =
    RawMethods<v1::KvCompression::WithRawCallbackMethod_Compress, v1::KvCompression::WithRawCallbackMethod_Decompress,
               v1::KvCompression::WithRawCallbackMethod_CompressTensor,
               v1::KvCompression::WithRawCallbackMethod_DecompressTensor,
               v1::KvCompression::WithRawCallbackMethod_Metrics, v1::KvCompression::WithRawCallbackMethod_Capabilities,
               v1::KvCompression::WithRawCallbackMethod_SharedMemory>::Service;
static_assert(kMethodLayers<RawService> == kMethodLayers<v1::KvCompression::CallbackService>,
              "a method that is not raw is parsed before the size of its message is checked");

// The gRPC side of the daemon. All messages come and go as raw buffers: tensors and frames are never copied into parsed
// messages, and no other message is parsed before its size is checked. On the wire they are ordinary messages.
// Everything given must outlive the server.
class Service final : public RawService {
 public:
  using Context = grpc::CallbackServerContext;
  using Message = grpc::ByteBuffer;
  using Unary = grpc::ServerUnaryReactor;
  using Streaming = grpc::ServerBidiReactor<Message, Message>;

  Service(const Options& daemon_options, ThreadPool& pool, SessionOptions options, Admission& admission,
          SharedMemoryStreams& shared_memory, MemoryGuard& guard, kvcompress::Metrics& metrics)
      : daemon_options_(daemon_options),
        pool_(pool),
        options_(std::move(options)),
        admission_(admission),
        shared_memory_(shared_memory),
        guard_(guard),
        metrics_(metrics),
        receiving_(gpr_cpu_num_cores(), pool.size()),
        idle_watch_(daemon_options.stream_idle_timeout) {}

  // RESOURCE_EXHAUSTED when there is no thread for what it needs. Before the first call.
  absl::Status Start() { return idle_watch_.Start(); }

  Streaming* Compress(Context* context) override;
  Streaming* Decompress(Context* context) override;
  Unary* CompressTensor(Context* context, const Message* request, Message* response) override;
  Unary* DecompressTensor(Context* context, const Message* request, Message* response) override;
  Unary* Metrics(Context* context, const Message* request, Message* response) override;
  Unary* Capabilities(Context* context, const Message* request, Message* response) override;
  Streaming* SharedMemory(Context* context) override;

 private:
  std::string Client(const grpc::CallbackServerContext& context) const;
  template <typename Session>
  Streaming* Start(Context* context);
  template <typename Call>
  Unary* StartTensor(Context* context, const Message& request, Message* response);
  // Ends a unary call of few bytes: with the message that `answer` gives for the request, or with its error.
  template <typename Request>
  Unary* AnswerAtOnce(Context* context, const Message& request, size_t max_bytes, const auto& answer,
                      Message& response);

  const Options& daemon_options_;
  ThreadPool& pool_;
  const SessionOptions options_;
  Admission& admission_;
  SharedMemoryStreams& shared_memory_;
  MemoryGuard& guard_;
  kvcompress::Metrics& metrics_;
  ReceivingThreads receiving_;
  IdleWatch idle_watch_;
};

}  // namespace kvcompress
