#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/artifact/artifact_store.h"
#include "core/base/thread_pool.h"
#include "server/config/options.h"
#include "server/net/acceptor.h"
#include "server/net/credentials.h"
#include "server/net/memory_guard.h"
#include "server/net/metrics_page.h"
#include "server/rpc/service.h"
#include "server/rpc/shared_memory_streams.h"
#include "server/session/admission.h"
#include "server/session/compress_plans.h"
#include "server/shm/regions.h"
#include "server/telemetry/metrics.h"

namespace kvcompress {

// Everything that runs in kv-compressd: pool, service, health, reflection, metrics page.
class Daemon {
 public:
  // The daemon serves when this returns. UNAVAILABLE when it cannot listen on an address; RESOURCE_EXHAUSTED when the
  // system does not give it the threads that it needs, of the codec's at least one; an error that names the file when
  // it cannot use certificates or tokens.
  static absl::StatusOr<std::unique_ptr<Daemon>> Start(const Options& options);
  ~Daemon();

  // The addresses in use, with the ports that the system chose.
  const std::vector<std::string>& listen() const { return listen_; }
  std::string metrics_listen() const { return metrics_page_ == nullptr ? "" : metrics_page_->address(); }
  size_t threads() const { return pool_.size(); }  // of the codec
  size_t threads_wanted() const { return pool_.wanted(); }

  // Reports NOT_SERVING, refuses new streams, waits for those in flight, for the drain timeout at most, and shuts down.
  void Drain();

 private:
  explicit Daemon(const Options& options);
  absl::Status ReadSecrets();
  absl::Status Listen();
  // Lets the builder's server serve the connections of an address.
  absl::Status AddListener(const std::string& address, grpc::ServerBuilder& builder);
  absl::Status ServeMetrics();
  void WarnOfExposure() const;
  LiveFigures Live();

  const Options options_;
  ThreadPool pool_;
  std::shared_ptr<Metrics> metrics_;
  Admission admission_;
  MemoryGuard guard_;
  RegionTable regions_;
  CompressPlans plans_;
  SharedMemoryStreams shared_memory_;
  ArtifactStore artifacts_;
  Service service_;
  std::unique_ptr<TlsIdentityFiles> tls_identity_;  // null: plaintext
  std::unique_ptr<TokenFile> tokens_;               // null: calls need none
  std::unique_ptr<Gate> gate_;
  std::vector<std::shared_ptr<grpc::ServerCredentials>> credentials_;
  std::vector<std::string> listen_;
  std::unique_ptr<grpc::Server> server_;
  Acceptor acceptor_;
  std::unique_ptr<MetricsPage> metrics_page_;  // null: none; last: it asks the members above
};

}  // namespace kvcompress
