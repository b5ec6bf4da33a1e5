#include "server/daemon.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <prometheus/text_serializer.h>

#include <filesystem>
#include <system_error>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "core/base/status_macros.h"
#include "core/base/thread.h"
#include "server/health_probe.h"
#include "server/net/address.h"
#include "server/net/receive_window.h"
#include "server/telemetry/log.h"

namespace kvcompress {
namespace {

// What the process may hold above its budget before the connections that are to blame for it are closed. What comes
// until they are is on top, and as much again where it is not clear which those are: together less than the 150 MiB
// that operators are told.
constexpr uint64_t kMemoryBesidesBudget = uint64_t{64} << 20;

// Of artifacts. It may come later, so its lack is no error.
void WarnOfDirectory(const std::string& directory) {
  std::error_code error;
  if (!directory.empty()) std::filesystem::directory_iterator(directory, error);
  if (!error) return;
  Log(LogLevel::kWarning, "the directory of artifacts cannot be read: codecs that name one are refused until it can",
      {{"artifacts", directory}, {"reason", error.message()}});
}

// What artifacts may take: those that are loaded, and the one that is being read.
uint64_t ArtifactBytes(const Options& options) { return options.artifacts.empty() ? 0 : 2 * options.artifact_memory; }

// How long calls may take to end once they are cancelled.
constexpr std::chrono::milliseconds kShutdownGrace{500};

// The limit of one client: `asked`, or, where that is 0, three quarters of the limit of all.
size_t OrMost(size_t asked, size_t all) { return asked != 0 ? asked : (all * 3 + 3) / 4; }

SessionOptions ToSessionOptions(const Options& options, size_t threads, ArtifactStore& artifacts,
                                const RegionTable& regions, CompressPlans& plans) {
  return {.limits = {.max_tensor_bytes = options.max_tensor_bytes,
                     .environment = {.artifacts = options.artifacts.empty() ? nullptr : &artifacts}},
          .default_codec = options.default_codec,
          .window_bytes = DefaultWindowBytes(threads),
          .regions = options.shared_memory_prefix.empty() ? nullptr : &regions,
          .plans = &plans};
}

// Bounds what a single connection may cost.
void LimitConnections(const Options& options, grpc::ServerBuilder& builder) {
  // Above our own limit, so that a client meets ours first, whose error says which limit it is.
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, static_cast<int>(options.max_streams) + 64);
  // Messages as they are, nothing else: gRPC inflates a compressed one before anything asks for its size, a thousand
  // bytes for each that came. Such a call ends with UNIMPLEMENTED, of any service.
  builder.AddChannelArgument(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1 << GRPC_COMPRESS_NONE);
  // Nor does a call pass through what would compress and inflate it, or count calls for gRPC's own debugging.
  for (const char* name :
       {GRPC_ARG_ENABLE_PER_MESSAGE_COMPRESSION, GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, GRPC_ARG_ENABLE_CHANNELZ}) {
    builder.AddChannelArgument(name, 0);
  }
  constexpr int kMaxHeaderBytes = 8 << 10;
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxHeaderBytes);
  // From the connection's start, through TLS, to the first bytes of HTTP/2.
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, static_cast<int>(options.handshake_timeout.count()));
  // A connection without calls is closed after 10 minutes; clients connect again by themselves.
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, 10 * 60'000);
  for (const auto& [name, limit] :
       {std::pair(GRPC_ARG_MAX_CONNECTION_AGE_MS, options.max_connection_age),
        std::pair(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, options.max_connection_age_grace)}) {
    if (limit.count() > 0) builder.AddChannelArgument(name, static_cast<int>(limit.count()));
  }
  // Pings find clients that vanished without a word, or that stop in the middle of a frame. Clients may ping, too,
  // every 10 seconds; the connection of one that pings more often is closed.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 2);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  // A connection's receive window does not grow by default: gRPC's probe for the bandwidth-delay product takes a busy
  // machine for a long line, and would let each of many connections send megabytes that no budget counts.
  const bool probe = options.adaptive_windows || FixReceiveWindows();
  builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, probe ? 1 : 0);
}

}  // namespace

Daemon::Daemon(const Options& options)
    : options_(options),
      pool_(options.threads),
      metrics_(std::make_shared<Metrics>([this] { return Live(); }, options.link_bandwidth)),
      admission_({.memory_budget = options.memory_budget,
                  .max_streams = options.max_streams,
                  .max_streams_per_client = OrMost(options.max_streams_per_client, options.max_streams),
                  .max_call_rate_per_client = options.max_call_rate_per_client,
                  .on_reject = [this](RejectReason reason) { metrics_->OnReject(reason); }}),
      guard_({.limit = options.memory_budget + ArtifactBytes(options) + kMemoryBesidesBudget,
              .reserve = kMemoryBesidesBudget / 2,
              .on_close =
                  [this](const std::string& peer, uint64_t bytes) {
                    metrics_->OnReject(RejectReason::kConnectionMemory);
                    Log(LogLevel::kWarning, "closed a connection for the memory that it takes outside of calls",
                        {{"peer", peer}, {"bytes", bytes}});
                  }}),
      shared_memory_(regions_, options_.shared_memory_prefix, options_.foreign_memory_prefix, admission_, *metrics_),
      artifacts_({.directory = options.artifacts, .max_memory_bytes = options.artifact_memory}),
      service_(options_, pool_, ToSessionOptions(options, pool_.size(), artifacts_, regions_, plans_), admission_,
               shared_memory_, guard_, *metrics_),
      acceptor_({.max_connections = options.max_connections,
                 .max_connections_per_client = OrMost(options.max_connections_per_client, options.max_connections),
                 .on_reject = [this] { metrics_->OnReject(RejectReason::kMaxConnections); },
                 .on_accept = [this](int fd, const std::string& peer) { guard_.Add(fd, peer); }}) {}

Daemon::~Daemon() {
  acceptor_.Stop();
  if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
}

LiveFigures Daemon::Live() {
  const ArtifactStore::Figures artifacts = artifacts_.figures();
  return {.streams = admission_.streams(),
          .bytes = admission_.bytes(),
          .memory_budget = admission_.memory_budget(),
          .jobs_queued = pool_.queued(),
          .threads = pool_.size(),
          .draining = admission_.draining(),
          .shared_memory_regions = regions_.count(),
          .shared_memory_bytes = regions_.bytes(),
          .connections = acceptor_.connections(),
          .certificate_expiry = tls_identity_ == nullptr ? std::nullopt : std::optional(tls_identity_->Get()->expires),
          .log_lines_dropped = LogLinesDropped(),
          .artifacts_loaded = artifacts.loaded,
          .artifact_bytes = artifacts.memory_bytes,
          .artifact_loads = artifacts.loads,
          .artifact_failures = artifacts.failures};
}

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(const Options& options) {
  constexpr size_t kOwnThreads = 4;  // for connections, the metrics page, idle streams, the guard of memory
  KVC_ASSIGN_OR_RETURN(std::unique_ptr<ThreadReserve> reserve, ThreadReserve::Take(GrpcThreads() + kOwnThreads));
  std::unique_ptr<Daemon> daemon(new Daemon(options));
  KVC_RETURN_IF_ERROR(daemon->pool_.status());
  reserve.reset();  // gRPC ends the process when it cannot start a thread
  KVC_RETURN_IF_ERROR(daemon->ReadSecrets());
  WarnOfDirectory(options.artifacts);
  KVC_RETURN_IF_ERROR(daemon->Listen());
  KVC_RETURN_IF_ERROR(daemon->ServeMetrics());
  return daemon;
}

absl::Status Daemon::ReadSecrets() {
  KVC_ASSIGN_OR_RETURN(tls_identity_, LoadTlsIdentity(options_.tls_cert, options_.tls_key, options_.tls_client_ca));
  KVC_ASSIGN_OR_RETURN(tokens_, LoadTokens(options_.token_file));
  gate_ = std::make_unique<Gate>(tokens_.get(), [this] { metrics_->OnReject(RejectReason::kUnauthenticated); });
  if (tls_identity_ != nullptr && tls_identity_->Get()->expires < absl::Now()) {
    Log(LogLevel::kWarning, "the TLS certificate has expired", {{"file", options_.tls_cert}});
  }
  return absl::OkStatus();
}

absl::Status Daemon::AddListener(const std::string& address, grpc::ServerBuilder& builder) {
  KVC_ASSIGN_OR_RETURN(Listener listener, Listener::Open(address, options_.unix_socket_mode));
  listen_.push_back(listener.address());
  credentials_.push_back(MakeListenerCredentials(IsUnixAddress(address) ? nullptr : tls_identity_.get(), *gate_));
  acceptor_.Add(std::move(listener), MakeGrpcReceiver(builder, credentials_.back()));
  return absl::OkStatus();
}

absl::Status Daemon::Listen() {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  for (const std::string& address : options_.listen) KVC_RETURN_IF_ERROR(AddListener(address, builder));
  builder.RegisterService(&service_);
  LimitConnections(options_, builder);
  // gRPC's own threads serve reflection alone.
  builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr) return absl::UnavailableError("the gRPC server cannot start");
  server_->GetHealthCheckService()->SetServingStatus(kServiceName, true);
  KVC_RETURN_IF_ERROR(guard_.Start());
  KVC_RETURN_IF_ERROR(service_.Start());
  KVC_RETURN_IF_ERROR(acceptor_.Start());
  WarnOfExposure();
  return absl::OkStatus();
}

void Daemon::WarnOfExposure() const {
  for (const std::string& address : listen_) {
    if (IsLoopback(address)) continue;
    if (tls_identity_ == nullptr) {
      Log(LogLevel::kWarning, "plaintext, without authentication, beyond this machine", {{"listen", address}});
    } else if (options_.tls_client_ca.empty() && tokens_ == nullptr) {
      Log(LogLevel::kWarning,
          "without authentication beyond this machine: there is neither --tls-client-ca nor --token-file",
          {{"listen", address}});
    }
  }
}

absl::Status Daemon::ServeMetrics() {
  if (options_.metrics_listen.empty()) return absl::OkStatus();
  const auto text = [this] { return prometheus::TextSerializer().Serialize(metrics_->Collect()); };
  KVC_ASSIGN_OR_RETURN(metrics_page_, MetricsPage::Start(options_.metrics_listen, text));
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
  acceptor_.Stop();
  server_->Shutdown(std::chrono::system_clock::now() + kShutdownGrace);
  server_->Wait();
  admission_.WaitUntilIdle(absl::Seconds(10));  // the last reactors' destructors
}

}  // namespace kvcompress
