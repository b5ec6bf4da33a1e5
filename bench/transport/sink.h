#pragma once

#include <grpcpp/grpcpp.h>

#include "kvcompress/v1/kvcompress.grpc.pb.h"

namespace kvcompress::bench {

// The service as a peer that does nothing: Compress reads messages without looking at them, and answers each with as
// many bytes of frame as the daemon would make of it; so does CompressTensor.
class Sink final : public v1::KvCompression::WithRawCallbackMethod_Compress<
                       v1::KvCompression::WithRawCallbackMethod_CompressTensor<v1::KvCompression::Service>> {
 public:
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Compress(grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* CompressTensor(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                           grpc::ByteBuffer* response) override;
};

}  // namespace kvcompress::bench
