#pragma once

#include <grpcpp/grpcpp.h>
#include <prometheus/exposer.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kvcompress/base/thread_pool.h"
#include "kvcompress/server/metrics.h"
#include "kvcompress/server/options.h"
#include "kvcompress/server/service.h"
#include "kvcompress/server/shared_memory_streams.h"
#include "kvcompress/session/admission.h"
#include "kvcompress/shm/regions.h"

namespace kvcompress {

// Everything that runs in kv-compressd: pool, service, health, reflection, metrics page.
class Daemon {
 public:
  // Serves when it returns. UNAVAILABLE when an address cannot be listened on.
  static absl::StatusOr<std::unique_ptr<Daemon>> Start(const Options& options);
  ~Daemon();

  // The addresses in use, with the ports that the system chose.
  const std::vector<std::string>& listen() const { return listen_; }
  const std::string& metrics_listen() const { return metrics_listen_; }  // empty: none

  // Health goes to NOT_SERVING, no stream comes in any more, those in flight may go on for the drain timeout; then all
  // is shut down.
  void Drain();

 private:
  explicit Daemon(const Options& options);
  absl::Status Listen();
  absl::Status ServeMetrics();
  LiveFigures Live() const;

  const Options options_;
  ThreadPool pool_;
  std::shared_ptr<Metrics> metrics_;
  Admission admission_;
  RegionTable regions_;
  SharedMemoryStreams shared_memory_;
  Service service_;
  std::vector<std::string> listen_;
  std::string metrics_listen_;
  std::unique_ptr<prometheus::Exposer> exposer_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace kvcompress
