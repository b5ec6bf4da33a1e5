#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "server/telemetry/log.h"
#include "server/telemetry/metrics.h"

namespace kvcompress {

// What every call has, streaming or not: a request id, its count in the metrics, a line in the log when it ends.
class CallRecord {
 public:
  using Clock = std::chrono::steady_clock;

  // Takes the request id from the metadata x-request-id if that is 1 to 64 characters of [A-Za-z0-9._-], else makes
  // one; the initial metadata give it back. A call that goes well is logged at `level`, one that fails as a warning
  // with the text of its status, one that its client has cancelled as information.
  CallRecord(grpc::CallbackServerContext* context, std::string_view method, Metrics& metrics,
             LogLevel level = LogLevel::kInfo);

  // `status` is what was sent. A call that the client's deadline has ended counts as DEADLINE_EXCEEDED.
  void End(const absl::Status& status, const StreamTotals& totals);

  const std::string& peer() const { return peer_; }
  const std::string& request_id() const { return request_id_; }

 private:
  grpc::CallbackServerContext* const context_;
  const std::string_view method_;
  Metrics& metrics_;
  const LogLevel level_;
  const Clock::time_point start_ = Clock::now();
  const std::string peer_;  // gRPC does not know it any more when the client has gone
  const std::string request_id_;
};

// What calls must show of their clients, besides where they come from.
struct ClientMarks {
  bool certificate = false;
  bool token = false;
};

// The client of a call, as limits of single clients tell clients apart: by IP address (of IPv6, the network of 64
// bits), by the names in the certificate, and by a hash of the token, if calls must show these. A unix socket has no
// address; empty if there is nothing else either.
std::string ClientOf(const grpc::CallbackServerContext& context, const ClientMarks& marks);

// The status as gRPC sends it, with google.rpc.RetryInfo if a retry can help. A message that would not fit the limits
// of HTTP/2 headers is cut.
grpc::Status ToGrpcStatus(const absl::Status& status);

// Most bytes of a request that carries neither tensors nor descriptions of them.
inline constexpr size_t kMaxRequestBytes = 4096;

// Tells clients that retry by themselves when to do so (gRFC A6).
void AddPushback(const absl::Status& status, grpc::CallbackServerContext& context);

}  // namespace kvcompress
