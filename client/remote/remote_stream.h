#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/support/byte_buffer.h>

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

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
};

// Makes one call of a bidirectional streaming method, and returns when it has ended. The calling thread does all of the
// work, and polls the network itself: a message costs no change of threads. One read and one write are in flight. While
// the handler is busy nothing is read, so a slow handler holds back the server.
StreamEnd RunStream(const std::shared_ptr<grpc::Channel>& channel, const std::string& method, absl::Time deadline,
                    StreamHandler& handler);

// Makes one call of a unary method, as RunStream does. `response` is set where the status is OK.
StreamEnd CallUnary(const std::shared_ptr<grpc::Channel>& channel, const std::string& method, absl::Time deadline,
                    const grpc::ByteBuffer& request, grpc::ByteBuffer& response);

}  // namespace kvcompress
