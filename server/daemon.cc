#include "kvcompress/server/daemon.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>

#include <exception>

#include "absl/strings/str_format.h"
#include "kvcompress/base/status_macros.h"
#include "kvcompress/server/bind.h"
#include "kvcompress/server/health_probe.h"
#include "kvcompress/server/log.h"

namespace kvcompress {
namespace {

// How long calls get to see their cancellation through, once their time is over.
constexpr std::chrono::milliseconds kShutdownGrace{500};

SessionOptions ToSessionOptions(const Options& options, size_t threads, const RegionTable& regions) {
  return {.limits = {.max_tensor_bytes = options.max_tensor_bytes},
          .default_codec = options.default_codec,
          .window_bytes = DefaultWindowBytes(threads),
          .regions = options.shared_memory_prefix.empty() ? nullptr : &regions};
}

absl::Status CannotListen(std::string_view address) {
  return absl::UnavailableError(absl::StrFormat("listen on %s: %s", address, WhyNotBound(address)));
}

}  // namespace

Daemon::Daemon(const Options& options)
    : options_(options),
      pool_(options.threads),
      metrics_(std::make_shared<Metrics>([this] { return Live(); })),
      admission_({.memory_budget = options.memory_budget,
                  .max_streams = options.max_streams,
                  .on_reject = [this](RejectReason reason) { metrics_->OnReject(reason); }}),
      shared_memory_(regions_, options_.shared_memory_prefix, admission_, *metrics_),
      service_(options_, pool_, ToSessionOptions(options, pool_.size(), regions_), admission_, shared_memory_,
               *metrics_) {}

Daemon::~Daemon() {
  if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
}

LiveFigures Daemon::Live() const {
  return {.streams = admission_.streams(),
          .bytes = admission_.bytes(),
          .memory_budget = admission_.memory_budget(),
          .jobs_queued = pool_.queued(),
          .threads = pool_.size(),
          .draining = admission_.draining(),
          .shared_memory_regions = regions_.count(),
          .shared_memory_bytes = regions_.bytes()};
}

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(const Options& options) {
  std::unique_ptr<Daemon> daemon(new Daemon(options));
  KVC_RETURN_IF_ERROR(daemon->Listen());
  KVC_RETURN_IF_ERROR(daemon->ServeMetrics());
  return daemon;
}

absl::Status Daemon::Listen() {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  for (const std::string& address : options_.listen) {
    if (IsUnixAddress(address)) KVC_RETURN_IF_ERROR(RemoveStaleSocket(address));
  }
  grpc::ServerBuilder builder;
  std::vector<int> ports(options_.listen.size());
  for (size_t i = 0; i < ports.size(); ++i) {
    builder.AddListeningPort(options_.listen[i], grpc::InsecureServerCredentials(), &ports[i]);
  }
  builder.RegisterService(&service_);
  // A port that is taken is an error, not one to be shared.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // Of one connection; somewhat above our own limit, so that it is ours, which says so, that is met first.
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, static_cast<int>(options_.max_streams) + 64);
  // Finds clients that vanished without a word, and bears those that ask for the same every 10 seconds.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  // The receive window of a connection stays at what its streams ask for, unless it may grow: the probe for the
  // bandwidth-delay product takes a busy machine for a long line, and lets each of many connections send megabytes that
  // no budget counts.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, options_.adaptive_windows ? 1 : 0);
  // Reflection alone is served by gRPC's own threads.
  builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
  {
    const ScopedMode mode(options_.unix_socket_mode);
    server_ = builder.BuildAndStart();
  }
  for (size_t i = 0; i < ports.size(); ++i) {
    if (ports[i] <= 0) return CannotListen(options_.listen[i]);
    const std::string& address = options_.listen[i];
    listen_.push_back(IsUnixAddress(address) ? address : JoinAddress(SplitAddress(address).host, ports[i]));
  }
  if (server_ == nullptr) return absl::UnavailableError("the gRPC server cannot start");
  server_->GetHealthCheckService()->SetServingStatus(kServiceName, true);
  for (const std::string& address : listen_) {
    if (!IsLoopback(address)) {
      Log(LogLevel::kWarning, "plaintext, without authentication, beyond this machine", {{"listen", address}});
    }
  }
  return absl::OkStatus();
}

absl::Status Daemon::ServeMetrics() {
  const std::string& address = options_.metrics_listen;
  if (address.empty()) return absl::OkStatus();
  try {
    exposer_ = std::make_unique<prometheus::Exposer>(address);
    exposer_->RegisterCollectable(metrics_);
  } catch (const std::exception&) {
    return CannotListen(address);
  }
  const std::vector<int> ports = exposer_->GetListeningPorts();
  if (ports.empty()) return CannotListen(address);
  metrics_listen_ = JoinAddress(SplitAddress(address).host, ports[0]);
  return absl::OkStatus();
}

void Daemon::Drain() {
  grpc::HealthCheckServiceInterface& health = *server_->GetHealthCheckService();
  health.SetServingStatus(false);
  health.SetServingStatus(kServiceName, false);
  admission_.StartDraining();
  const bool idle = admission_.WaitUntilIdle(absl::FromChrono(options_.drain_timeout));
  if (!idle) {
    Log(LogLevel::kWarning, "drain timeout, cancelling", {{"streams", uint64_t{admission_.streams()}}});
  }
  shared_memory_.Close();  // not before: calls in flight need their regions
  server_->Shutdown(std::chrono::system_clock::now() + kShutdownGrace);
  server_->Wait();
  admission_.WaitUntilIdle(absl::Seconds(10));  // the last reactors' destructors
}

}  // namespace kvcompress
