#include "client/remote/remote_client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <random>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/deadline.h"
#include "client/remote/channel.h"
#include "client/remote/exchange.h"
#include "client/remote/lasting_fault.h"
#include "client/remote/older_daemons.h"
#include "client/remote/shared_exchange.h"
#include "client/remote/shared_memory_pool.h"
#include "core/base/status_macros.h"
#include "core/base/thread.h"
#include "kvcompress/v1/kvcompress.grpc.pb.h"

namespace kvcompress {
namespace {

// The waits between the attempts of one call.
class Backoff {
 public:
  explicit Backoff(const RetryPolicy& policy) : policy_(policy), next_(policy.initial_backoff) {}

  // `hint`: how long the daemon asks us to wait, at least.
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

// Two ends of a call mean that the daemon is not there. CANCELLED, although nobody has cancelled the call: it met a
// connection that a draining daemon closes. UNKNOWN, as gRPC calls an end without a status: a proxy has cut the call
// because its daemon died.
grpc::StatusCode CodeOf(const StreamEnd& end) {
  const grpc::StatusCode code = end.status.error_code();
  const bool cut = code == grpc::StatusCode::CANCELLED || code == grpc::StatusCode::UNKNOWN;
  return cut && end.handler.ok() ? grpc::StatusCode::UNAVAILABLE : code;
}

bool IsRetryable(const StreamEnd& end) {
  const grpc::StatusCode code = CodeOf(end);
  return code == grpc::StatusCode::UNAVAILABLE ||
         (code == grpc::StatusCode::RESOURCE_EXHAUSTED && end.retry_delay.has_value());
}

// Whether the daemon may have lost the shared memory of a call that ended so.
bool LosesRegions(const StreamEnd& end) {
  return end.reason == v1::SHARED_MEMORY_LOST || end.status.error_code() == grpc::StatusCode::UNAVAILABLE;
}

// Whether output needs more buffers than this client, of another version than the daemon, reckons for it.
bool LacksBuffers(const StreamEnd& end) { return end.reason == v1::OUTPUT_BUFFERS_TOO_SMALL; }

// Something that a daemon has refused because it does not know it. Thread-safe.
class Refusal {
 public:
  explicit Refusal(absl::Duration pause) : pause_(pause) {}

  void Begin() { until_ = absl::ToUnixNanos(absl::Now() + pause_); }
  // Whether the daemon is not asked for it.
  bool holds() const { return absl::GetCurrentTimeNanos() < until_; }

 private:
  const absl::Duration pause_;
  std::atomic<int64_t> until_ = 0;
};

// As the codec in this process refuses it; a daemon would wait for the rest, and guess axes from the tensor's name.
absl::Status CheckJob(const CompressJob& job) {
  KVC_ASSIGN_OR_RETURN(const uint64_t elements, ValidateTensor(job.tensor));
  const uint64_t bytes = elements * DTypeSize(job.tensor.dtype);
  if (job.source->size() == bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("tensor \"%s\": %d bytes instead of the %d that its shape says",
                                                    job.tensor.name, job.source->size(), bytes));
}

// A likely cause of an end of the connection that gRPC only describes.
std::string Suspicion(const std::string& message, const RemoteOptions& options) {
  const auto says = [&](std::string_view text) { return message.find(text) != message.npos; };
  if (says("WRONG_VERSION_NUMBER") || says("wrong version number")) return " (does the daemon speak plaintext?)";
  const bool closed = says("Socket closed") || says("Connection reset by peer") || says("Broken pipe");
  if (!closed || options.address.starts_with("unix:")) return "";
  if (!options.tls) return " (does the daemon speak TLS?)";
  return options.tls->certificate.empty() ? " (does the daemon want a certificate?)" : "";
}

class RemoteClient final : public CodecClient {
 public:
  RemoteClient(const RemoteOptions& options, const ChannelTarget& target)
      : options_(options),
        channel_(MakeChannel(target, options)),
        tensor_calls_refused_(options.pause),
        batches_refused_(options.pause) {
    // A list of daemons cannot share memory: the next call may go to another of them.
    if (options.shared_memory && target.local && !target.spread) {
      pool_ = std::make_unique<SharedMemoryPool>(channel_, options.connect_timeout, options.pause);
    }
  }

  absl::Status Compress(std::span<const CompressJob> jobs, absl::Time deadline, CompressSink& sink) override {
    for (const CompressJob& job : jobs) KVC_RETURN_IF_ERROR(CheckJob(job));
    return Call<CompressReplies>(jobs, deadline, sink);
  }
  absl::Status Decompress(std::span<const DecompressJob> jobs, absl::Time deadline, DecompressSink& sink) override {
    return Call<DecompressReplies>(jobs, deadline, sink);
  }

  std::unique_ptr<SharedBuffer> Allocate(size_t bytes) override {
    std::unique_ptr<SharedBuffer> buffer = pool_ == nullptr ? nullptr : pool_->Allocate(bytes);
    return buffer == nullptr ? CodecClient::Allocate(bytes) : std::move(buffer);
  }

  std::string Transport() const override {
    if (pool_ == nullptr) return "connection";
    const absl::Status status = pool_->status();
    if (status.ok()) return last_was_shared_ ? "shared memory" : "connection";
    return absl::StrFormat("connection (%s)", status.message());
  }

 private:
  absl::Status Connect(absl::Time deadline);
  // Why there is no connection, once the channel has failed to make one: UNAVAILABLE, or FAILED_PRECONDITION for what
  // another attempt would not mend. OK where a call finds one after all.
  absl::Status ConnectFault(absl::Time deadline) const;
  template <typename Replies>
  absl::Status Call(std::span<const typename Replies::Job> jobs, absl::Time deadline, typename Replies::Sink& sink);
  // `shared`: in, whether shared memory may be used; out, whether it was.
  template <typename Replies>
  StreamEnd Attempt(std::span<const typename Replies::Job> jobs, absl::Time deadline, typename Replies::Sink& sink,
                    Delivery& delivery, bool batches, bool& shared);
  // The result of a call that ended with `status`, after reports on `jobs_done` of its `jobs`.
  absl::Status Verdict(grpc::StatusCode status, const std::string& message, size_t jobs_done, size_t jobs,
                       absl::Time deadline) const;

  const RemoteOptions options_;
  const std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<SharedMemoryPool> pool_;  // null: all bytes go through the channel
  std::atomic<bool> was_reached_ = false;
  std::atomic<bool> last_was_shared_ = false;
  Refusal tensor_calls_refused_;
  Refusal batches_refused_;
};

// Waits for the channel. A daemon that was never reached is given up at once; one that was has until connect_timeout to
// come back.
absl::Status RemoteClient::Connect(absl::Time deadline) {
  const absl::Time limit = std::min(deadline, absl::Now() + options_.connect_timeout);
  grpc_connectivity_state state = channel_->GetState(/*try_to_connect=*/true);
  // gRPC 1.51 looks at errno late, and takes some connections that are under way for failed ones: so the first failure
  // does not count.
  bool failed = false;
  while (state != GRPC_CHANNEL_READY) {
    absl::Time patience = limit;
    if (state == GRPC_CHANNEL_TRANSIENT_FAILURE && !was_reached_) {
      if (std::exchange(failed, true)) break;
      grpc::experimental::ChannelResetConnectionBackoff(channel_.get());
      patience = std::min(limit, absl::Now() + absl::Milliseconds(300));
    } else if (state == GRPC_CHANNEL_TRANSIENT_FAILURE) {
      absl::Status fault = ConnectFault(limit);
      if (absl::IsFailedPrecondition(fault)) return fault;
    }
    if (!channel_->WaitForStateChange(state, absl::ToChronoTime(patience)) && patience == limit) break;
    state = channel_->GetState(true);
  }
  if (state == GRPC_CHANNEL_READY) {
    was_reached_ = true;
    return absl::OkStatus();
  }
  if (state != GRPC_CHANNEL_TRANSIENT_FAILURE) {
    KVC_RETURN_IF_ERROR(CheckDeadline(deadline));
    return absl::UnavailableError(absl::StrFormat("connect to %s: no answer", options_.address));
  }
  return ConnectFault(std::min(deadline, absl::Now() + options_.connect_timeout));
}

absl::Status RemoteClient::ConnectFault(absl::Time deadline) const {
  // Only a call tells why; it fails at once, so that who has waited until the deadline is told, too.
  constexpr absl::Duration kGrace = absl::Milliseconds(100);
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(std::max(deadline, absl::Now() + kGrace)));
  v1::MetricsResponse response;
  const auto stub = v1::KvCompression::NewStub(channel_);
  const grpc::Status status = stub->Metrics(&context, v1::MetricsRequest(), &response);
  if (status.error_code() != grpc::StatusCode::UNAVAILABLE) return absl::OkStatus();
  const std::string& message = status.error_message();
  const std::string lasting = LastingFault(message, options_, deadline);
  if (!lasting.empty()) {
    return absl::FailedPreconditionError(absl::StrFormat("connect to %s: %s", options_.address, lasting));
  }
  return absl::UnavailableError(
      absl::StrFormat("connect to %s: %s%s", options_.address, message, Suspicion(message, options_)));
}

absl::Status RemoteClient::Verdict(grpc::StatusCode status, const std::string& message, size_t jobs_done, size_t jobs,
                                   absl::Time deadline) const {
  const auto code = static_cast<absl::StatusCode>(status);
  switch (status) {
    case grpc::StatusCode::OK:
      if (jobs_done == jobs) return absl::OkStatus();
      // When the deadline passes, gRPC drops answers that it has already, but not the status that came after them.
      KVC_RETURN_IF_ERROR(CheckDeadline(deadline));
      return DaemonFault(options_.address, absl::StatusCode::kInternal,
                         "it ended the call before it had answered all of it");
    case grpc::StatusCode::INVALID_ARGUMENT:
    case grpc::StatusCode::ABORTED:
    case grpc::StatusCode::DATA_LOSS: return absl::Status(code, message);
    case grpc::StatusCode::DEADLINE_EXCEEDED: return absl::DeadlineExceededError("deadline exceeded");
    default: return DaemonFault(options_.address, code, message);
  }
}

template <typename Replies>
StreamEnd RemoteClient::Attempt(std::span<const typename Replies::Job> jobs, absl::Time deadline,
                                typename Replies::Sink& sink, Delivery& delivery, bool batches, bool& shared) {
  const std::string& method = MethodPath<typename Replies::Direction::Request>();
  delivery.BeginAttempt();
  SliceReader slices;
  if (jobs.size() == 1 && !tensor_calls_refused_.holds() && FitsTensorCall(jobs[0])) {
    shared = last_was_shared_ = false;
    StreamEnd end = CallTensor<Replies>(channel_, deadline, options_.address, jobs[0], sink, delivery, slices);
    slices.WaitUntilReleased(absl::InfiniteFuture());
    if (end.status.error_code() != grpc::StatusCode::UNIMPLEMENTED) return end;
    tensor_calls_refused_.Begin();
  }
  std::unique_ptr<RegisteredMemory> memory = shared ? pool_->Take(deadline) : nullptr;
  shared = last_was_shared_ = memory != nullptr;
  if (shared) {
    SharedExchange<Replies> exchange(options_.address, jobs, deadline, sink, delivery, batches, pool_.get(),
                                     CallMemory(memory->bytes(), memory->region()), memory->output_is_larger());
    StreamEnd end = RunStream(channel_, method, deadline, exchange);
    if (LosesRegions(end)) pool_->Forget(*memory);
    if (LacksBuffers(end)) memory->OnLargerOutput();
    // Otherwise the daemon may still be writing to the memory.
    if (end.handler.ok() && end.status.ok()) pool_->PutBack(std::move(memory));
    return end;
  }
  ByteExchange<Replies> exchange(options_.address, jobs, deadline, sink, delivery, slices, batches);
  StreamEnd end = RunStream(channel_, method, deadline, exchange);
  slices.WaitUntilReleased(absl::InfiniteFuture());
  return end;
}

template <typename Replies>
absl::Status RemoteClient::Call(std::span<const typename Replies::Job> jobs, absl::Time deadline,
                                typename Replies::Sink& sink) {
  Delivery delivery;
  Backoff backoff(options_.retry);
  bool may_share = pool_ != nullptr;
  absl::Status last;  // of the attempt before
  for (int attempt = 1;; ++attempt) {
    const absl::Status connected = Connect(deadline);
    if (!connected.ok()) return last.ok() || !absl::IsUnavailable(connected) ? connected : last;
    if (jobs.empty()) return absl::OkStatus();
    const bool batches = !batches_refused_.holds();
    bool shared = may_share;
    const StreamEnd end =
        Attempt<Replies>(jobs.subspan(delivery.jobs_done()), deadline, sink, delivery, batches, shared);
    if (!end.handler.ok()) return end.handler;
    if (batches && RefusesBatches(end.status)) {
      batches_refused_.Begin();
      continue;
    }
    last = Verdict(CodeOf(end), end.status.error_message(), delivery.jobs_done(), jobs.size(), deadline);
    if (shared && (LosesRegions(end) || LacksBuffers(end))) {
      may_share = false;
      if (!IsRetryable(end)) continue;
    }
    if (last.ok() || !IsRetryable(end)) return last;
    // What the sink has is whole and checked: only the end of the stream got lost.
    if (delivery.jobs_done() == jobs.size()) return absl::OkStatus();
    if (attempt >= options_.retry.max_attempts || end.retry_delay > options_.retry.max_retry_after) return last;
    const absl::Duration delay = backoff.Next(end.retry_delay);
    if (absl::Now() + delay >= deadline) return last;
    options_.on_retry({attempt, last, delay});
    absl::SleepFor(delay);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<CodecClient>> MakeRemoteClient(const RemoteOptions& options) {
  KVC_ASSIGN_OR_RETURN(const ChannelTarget target, ParseAddress(options.address));
  if (!options.token.empty() && !options.tls && !target.local) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "the token would go to \"%s\" in plaintext: use TLS, or a daemon of this machine", options.address));
  }
  // gRPC ends the process when it cannot start a thread.
  KVC_RETURN_IF_ERROR(ThreadReserve::Take(GrpcThreads()).status());
  return std::make_unique<RemoteClient>(options, target);
}

}  // namespace kvcompress
