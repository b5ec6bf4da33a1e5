#pragma once

#include "core/base/thread_pool.h"
#include "kvcompress/v1/kvcompress.grpc.pb.h"
#include "server/config/options.h"
#include "server/rpc/shared_memory_streams.h"
#include "server/rpc/tensor_call.h"
#include "server/session/admission.h"
#include "server/session/session.h"
#include "server/telemetry/metrics.h"

namespace kvcompress {

// The gRPC side of the daemon. All messages come and go as raw buffers: tensors and frames are never copied into parsed
// ones, and of the others none is parsed before its size is checked. On the wire they are ordinary messages. Everything
// given must outlive the server.
class Service final
    : public v1::KvCompression::WithRawCallbackMethod_Compress<
          v1::KvCompression::WithRawCallbackMethod_Decompress<v1::KvCompression::WithRawCallbackMethod_CompressTensor<
              v1::KvCompression::WithRawCallbackMethod_DecompressTensor<
                  v1::KvCompression::WithRawCallbackMethod_Metrics<
                      v1::KvCompression::WithRawCallbackMethod_Capabilities<
                          v1::KvCompression::WithRawCallbackMethod_SharedMemory<v1::KvCompression::Service>>>>>>> {
 public:
  Service(const Options& daemon_options, ThreadPool& pool, SessionOptions options, Admission& admission,
          SharedMemoryStreams& shared_memory, kvcompress::Metrics& metrics)
      : daemon_options_(daemon_options),
        pool_(pool),
        options_(std::move(options)),
        admission_(admission),
        shared_memory_(shared_memory),
        metrics_(metrics),
        tensor_calls_{pool_, options_, admission_, metrics_} {}

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Compress(grpc::CallbackServerContext* context) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Decompress(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* CompressTensor(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                           grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* DecompressTensor(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                             grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Metrics(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                    grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Capabilities(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* SharedMemory(
      grpc::CallbackServerContext* context) override;

 private:
  std::string Client(const grpc::CallbackServerContext& context) const;
  template <typename Traits>
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Start(grpc::CallbackServerContext* context,
                                                                     std::string_view method);

  const Options& daemon_options_;
  ThreadPool& pool_;
  const SessionOptions options_;
  Admission& admission_;
  SharedMemoryStreams& shared_memory_;
  kvcompress::Metrics& metrics_;
  const TensorCallEnvironment tensor_calls_;
};

}  // namespace kvcompress
