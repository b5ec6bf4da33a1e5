#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace kvcompress {

struct Options {
  std::vector<std::string> listen = {"127.0.0.1:50051"};
  uint32_t unix_socket_mode = 0660;
  std::string tls_cert;       // empty: plaintext
  std::string tls_key;        // of tls_cert
  std::string tls_client_ca;  // empty: clients need no certificate
  std::string token_file;     // empty: callers need no token
  bool allow_plaintext = false;
  std::string shared_memory_prefix;               // of keys, without their "/"; empty: no shared memory
  std::string foreign_memory_prefix;              // of objects of other programs; empty: none
  std::string metrics_listen = "127.0.0.1:9464";  // empty: no metrics page
  size_t threads = 0;                             // 0: one for each CPU
  uint64_t memory_budget = uint64_t{1} << 30;
  uint64_t max_tensor_bytes = uint64_t{64} << 30;
  std::string artifacts;  // directory; empty: none
  uint64_t artifact_memory = uint64_t{256} << 20;
  size_t max_streams = 256;
  size_t max_streams_per_client = 0;    // 0: three quarters of max_streams
  size_t max_call_rate_per_client = 0;  // calls a second; 0: any
  size_t max_connections = 1024;
  size_t max_connections_per_client = 0;  // 0: three quarters of max_connections
  std::chrono::milliseconds handshake_timeout{10000};
  std::chrono::milliseconds stream_idle_timeout{60000};   // 0: no limit
  bool adaptive_windows = false;                          // receive windows grow with the measured bandwidth
  std::chrono::milliseconds max_connection_age{0};        // 0: no limit
  std::chrono::milliseconds max_connection_age_grace{0};  // 0: no limit
  double link_bandwidth = 0;                              // bytes a second; 0: not known
  std::string default_codec = "int4(group=64)";
  std::chrono::milliseconds drain_timeout{30000};
  std::string log_level = "info";
  bool log_json = false;
  std::string port_file;

  // What to do instead of serving.
  bool healthcheck = false;
  std::string healthcheck_target;  // empty: the first of `listen`
  bool version = false;
  bool help = false;
};

// Reads the flags in `args` (without the program's name), the environment and the file that --config names. The command
// line comes before the environment, which comes before the file. INVALID_ARGUMENT with one line that names the fault
// and where it is, also for settings that do not go together and, without --allow-plaintext, for a daemon that others
// could reach unprotected.
absl::StatusOr<Options> ParseOptions(const std::vector<std::string>& args,
                                     const std::function<const char*(const char*)>& getenv);

std::string OptionsUsage();

}  // namespace kvcompress
