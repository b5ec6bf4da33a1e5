#pragma once

#include <grpcpp/grpcpp.h>

#include <string>

#include "core/base/thread_pool.h"
#include "server/session/admission.h"
#include "server/session/session.h"
#include "server/telemetry/metrics.h"

// CompressTensor and DecompressTensor: a tensor that came in one message. A small one with a fast codec is done in the
// reaction itself, which is sooner than handing it to another thread; every other is a job of the pool.
namespace kvcompress {

struct TensorCallEnvironment {
  ThreadPool& pool;
  const SessionOptions& options;
  Admission& admission;
  Metrics& metrics;
};

// `request` and `response` are the call's, `client` is ClientOf's; the environment must outlive the call.
grpc::ServerUnaryReactor* StartCompressTensor(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                              grpc::ByteBuffer* response, std::string client,
                                              const TensorCallEnvironment& environment);
grpc::ServerUnaryReactor* StartDecompressTensor(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                                grpc::ByteBuffer* response, std::string client,
                                                const TensorCallEnvironment& environment);

}  // namespace kvcompress
