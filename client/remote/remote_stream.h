#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/support/byte_buffer.h>

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvcompress/v1/kvcompress.pb.h"

namespace kvcompress {

// What a stream sends and takes: calls come from the thread that runs the stream, which may block in them. An error
// that is returned cancels the stream.
class StreamHandler {
 public:
  struct Outgoing {
    grpc::ByteBuffer message;  // none: only `last` is meant
    bool last = false;         // half-closes the stream
    bool followed = false;     // the next message is at hand: both may leave together
  };

  virtual ~StreamHandler() = default;
  // The next message; empty when there is none before the next reply. Not called after the last.
  virtual absl::StatusOr<std::optional<Outgoing>> Next() = 0;
  virtual absl::Status Take(const grpc::ByteBuffer& reply) = 0;
};

struct StreamEnd {
  absl::Status handler;  // the handler's first error
  grpc::Status status;   // of the call
  // How long the server wants us to wait before the next call.
  std::optional<absl::Duration> retry_delay;
  // Which reason it gives.
  v1::ErrorReason reason = v1::ERROR_REASON_UNSPECIFIED;
};

// Looks after a call while a thread works at it.
class CallWatch {
 public:
  virtual ~CallWatch() = default;
  // Asked about every 50 ms: whether to cancel the call.
  virtual bool Cancels() { return false; }
  // Asked after each reply to a stream: whether the thread returns, to go on later.
  virtual bool Pauses() { return false; }
};

// One call of a bidirectional streaming method. The thread in Run does all of the work, and polls the network itself: a
// message costs no change of threads. One read and one write are in flight. While the handler is busy nothing is read,
// so a slow handler holds back the server.
class StreamCall {
 public:
  // Begins the call, which ends with this object at the latest. `handler` must outlive it.
  StreamCall(const std::shared_ptr<grpc::Channel>& channel, const std::string& method, absl::Time deadline,
             StreamHandler& handler);
  ~StreamCall();

  // The call's end; nothing where `watch`, which may be null, has paused it. Not called again after the end.
  std::optional<StreamEnd> Run(CallWatch* watch);
  // From any thread, also while another one is in Run.
  void Cancel();

 private:
  class Work;
  const std::unique_ptr<Work> work_;
};

// Makes one call of a bidirectional streaming method, and returns when it has ended.
StreamEnd RunStream(const std::shared_ptr<grpc::Channel>& channel, const std::string& method, absl::Time deadline,
                    StreamHandler& handler);

// Makes one call of a unary method, as RunStream does. `response` is set where the status is OK. `watch` may be null.
StreamEnd CallUnary(const std::shared_ptr<grpc::Channel>& channel, const std::string& method, absl::Time deadline,
                    const grpc::ByteBuffer& request, grpc::ByteBuffer& response, CallWatch* watch = nullptr);

}  // namespace kvcompress
