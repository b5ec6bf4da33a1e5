#pragma once

#include <grpcpp/grpcpp.h>

#include <string>

#include "core/base/thread_pool.h"
#include "server/session/admission.h"
#include "server/session/options.h"
#include "server/telemetry/metrics.h"

namespace kvcompress {

struct TensorCallEnvironment {
  ThreadPool& pool;
  const SessionOptions& options;
  Admission& admission;
  Metrics& metrics;
};

// Starts a call of CompressTensor (`Call` is CompressTensorCall) or DecompressTensor (DecompressTensorCall). A small
// tensor with a fast codec is done in the reaction itself, which is sooner than handing it to another thread; every
// other is a job of the pool. `request` and `response` are the call's, `client` is ClientOf's; the environment must
// outlive the call.
template <typename Call>
grpc::ServerUnaryReactor* StartTensorCall(grpc::CallbackServerContext* context, const grpc::ByteBuffer& request,
                                          grpc::ByteBuffer* response, std::string client,
                                          const TensorCallEnvironment& environment);

}  // namespace kvcompress
