#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <random>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "kvcompress/base/status_macros.h"
#include "kvcompress/client/channel.h"
#include "kvcompress/client/codec_client.h"
#include "kvcompress/client/exchange.h"
#include "kvcompress/v1/kvcompress.grpc.pb.h"

namespace kvcompress {
namespace {

// The waits between the attempts of one call.
class Backoff {
 public:
  explicit Backoff(const RetryPolicy& policy) : policy_(policy), next_(policy.initial_backoff) {}

  // `hint`: what the daemon asks for, never undercut.
  absl::Duration Next(std::optional<absl::Duration> hint) {
    std::uniform_real_distribution<double> jitter(hint ? 1 : 1 - policy_.jitter, 1 + policy_.jitter);
    const absl::Duration delay = hint.value_or(next_) * jitter(random_);
    next_ = std::min(next_ * policy_.multiplier, policy_.max_backoff);
    return delay;
  }

 private:
  const RetryPolicy& policy_;
  absl::Duration next_;
  std::minstd_rand random_{std::random_device{}()};
};

bool IsRetryable(const StreamEnd& end) {
  switch (end.status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
      return true;
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      return end.retry_delay.has_value();
    default:
      return false;
  }
}

class RemoteClient final : public CodecClient {
 public:
  RemoteClient(const RemoteOptions& options, const ChannelTarget& target)
      : options_(options), channel_(MakeChannel(target, options)) {}

  absl::Status Compress(std::span<const CompressJob> jobs, absl::Time deadline, CompressSink& sink) override {
    return Call<CompressMethod>(jobs, deadline, sink);
  }
  absl::Status Decompress(std::span<const DecompressJob> jobs, absl::Time deadline, DecompressSink& sink) override {
    return Call<DecompressMethod>(jobs, deadline, sink);
  }

 private:
  absl::Status Connect(absl::Time deadline);
  template <typename Method, typename Job, typename Sink>
  absl::Status Call(std::span<const Job> jobs, absl::Time deadline, Sink& sink);
  template <typename Method, typename Job, typename Sink>
  absl::Status Attempt(std::span<const Job> jobs, absl::Time deadline, Sink& sink, Delivery& delivery, StreamEnd& end);
  // What the end of an attempt at `jobs`, of which `jobs_done` were reported, means.
  absl::Status Verdict(const grpc::Status& status, size_t jobs_done, size_t jobs) const;

  const RemoteOptions options_;
  const std::shared_ptr<grpc::Channel> channel_;
  std::atomic<bool> was_reached_ = false;
};

// Waits for the channel, so that a daemon that is not there is told apart from one that died: the first is given up at
// once, the other has until connect_timeout to come back.
absl::Status RemoteClient::Connect(absl::Time deadline) {
  const absl::Time limit = std::min(deadline, absl::Now() + options_.connect_timeout);
  grpc_connectivity_state state = channel_->GetState(/*try_to_connect=*/true);
  while (state != GRPC_CHANNEL_READY && (was_reached_ || state != GRPC_CHANNEL_TRANSIENT_FAILURE)) {
    if (!channel_->WaitForStateChange(state, absl::ToChronoTime(limit))) break;
    state = channel_->GetState(true);
  }
  if (state == GRPC_CHANNEL_READY) {
    was_reached_ = true;
    return absl::OkStatus();
  }
  if (limit == deadline && absl::Now() >= deadline) return absl::DeadlineExceededError("deadline exceeded");
  if (state != GRPC_CHANNEL_TRANSIENT_FAILURE) {
    return absl::UnavailableError(absl::StrFormat("connect to %s: no answer", options_.address));
  }
  // Only a call tells why; it fails at once.
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(std::min(deadline, absl::Now() + options_.connect_timeout)));
  v1::MetricsResponse response;
  const auto stub = v1::KvCompression::NewStub(channel_);
  const grpc::Status status = stub->Metrics(&context, v1::MetricsRequest(), &response);
  if (status.error_code() != grpc::StatusCode::UNAVAILABLE) return absl::OkStatus();
  return absl::UnavailableError(absl::StrFormat("connect to %s: %s", options_.address, status.error_message()));
}

absl::Status RemoteClient::Verdict(const grpc::Status& status, size_t jobs_done, size_t jobs) const {
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  switch (status.error_code()) {
    case grpc::StatusCode::OK:
      if (jobs_done == jobs) return absl::OkStatus();
      return DaemonFault(options_.address, absl::StatusCode::kInternal,
                         "it ended the call before it had answered all of it");
    case grpc::StatusCode::INVALID_ARGUMENT:
    case grpc::StatusCode::DATA_LOSS:
      return absl::Status(code, status.error_message());
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return absl::DeadlineExceededError("deadline exceeded");
    default:
      return DaemonFault(options_.address, code, status.error_message());
  }
}

template <typename Method, typename Job, typename Sink>
absl::Status RemoteClient::Attempt(std::span<const Job> jobs, absl::Time deadline, Sink& sink, Delivery& delivery,
                                   StreamEnd& end) {
  delivery.BeginAttempt();
  SliceReader slices;
  Exchange<Method> exchange(options_.address, jobs, slices, sink, delivery);
  end = RunStream(channel_, Method::kName, deadline, exchange);
  slices.WaitUntilReleased(absl::InfiniteFuture());
  if (!end.handler.ok()) return end.handler;
  return Verdict(end.status, exchange.done(), jobs.size());
}

template <typename Method, typename Job, typename Sink>
absl::Status RemoteClient::Call(std::span<const Job> jobs, absl::Time deadline, Sink& sink) {
  Delivery delivery;
  Backoff backoff(options_.retry);
  absl::Status last;  // of the attempt before
  for (int attempt = 1;; ++attempt) {
    const absl::Status connected = Connect(deadline);
    if (!connected.ok()) return last.ok() || absl::IsDeadlineExceeded(connected) ? connected : last;
    if (jobs.empty()) return absl::OkStatus();
    StreamEnd end;
    last = Attempt<Method>(jobs.subspan(delivery.jobs_done()), deadline, sink, delivery, end);
    if (last.ok() || !end.handler.ok() || !IsRetryable(end)) return last;
    // What the sink has is whole and checked: only the end of the stream got lost.
    if (delivery.jobs_done() == jobs.size()) return absl::OkStatus();
    const absl::Duration delay = backoff.Next(end.retry_delay);
    if (attempt >= options_.retry.max_attempts || absl::Now() + delay >= deadline) return last;
    options_.on_retry({attempt, last, delay});
    absl::SleepFor(delay);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<CodecClient>> MakeRemoteClient(const RemoteOptions& options) {
  KVC_ASSIGN_OR_RETURN(const ChannelTarget target, ParseAddress(options.address));
  return std::make_unique<RemoteClient>(options, target);
}

}  // namespace kvcompress
