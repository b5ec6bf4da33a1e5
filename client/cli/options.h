#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/cli/break_even.h"
#include "client/cli/go_flags.h"
#include "core/simd/rotary.h"

namespace kvcompress {

// What the command line asks for.
struct CliOptions {
  std::string input;
  std::string output;
  int64_t group_size = 64;
  double sparsity = 0;
  double bits = 0;     // a value; 0: not said
  double min_snr = 0;  // 0 in this and the next three: no bound
  double min_token_snr = 0;
  double max_error = 0;
  double min_cosine = 0;
  bool decompress = false;
  bool metrics_only = false;
  bool verbose = false;
  std::string server;
  bool tls = false;  // also set by each of the next four
  std::string tls_ca;
  std::string tls_cert;
  std::string tls_key;
  std::string tls_server_name;
  std::string token_file;
  std::string codec;
  std::string profile;
  std::string on_nonfinite = "error";
  std::string fingerprint;  // in hexadecimal, of which CompleteOptions makes the bytes
  std::string artifacts;    // a directory
  int64_t threads = 0;
  absl::Duration timeout;
  bool inspect = false;
  std::string format = "table";     // of -inspect: table, json or csv; of -sweep: json unless given, or table
  bool per_head = false;            // of -inspect
  double rope_theta = 0;            // 0: not said
  std::string rope_pairs = "half";  // half or interleaved
  int64_t rope_dims = 0;            // 0: all channels
  int64_t rope_offset = 0;
  std::string rope_scaling;  // JSON (rope_scaling.h), of which CompleteOptions makes:
  simd::RotaryScaling scaling = {};
  int64_t rope_start = 0;
  bool calibrate = false;
  std::vector<std::string> caches;  // of -calibrate: what -input lists
  std::string weights;
  std::string config;  // of -calibrate: ranks of heads
  int64_t group_dim = 128;
  bool sweep = false;
  std::string report;
  std::vector<std::string> sweep_specs;  // what -codec lists, in canonical form; empty: all
  std::string bandwidth;                 // of -sweep: bandwidths with commas, of which CompleteOptions makes:
  std::vector<Link> links = {};
  int64_t context_tokens = 32768;  // of links
  // Of -sweep; 0: no limit.
  double max_key_mae = 0;
  double max_value_mae = 0;
  double min_key_cosine = 0;
  double min_value_cosine = 0;
  bool version = false;
};

// Checks the parsed flags together and completes `options`: the file to inspect; the daemon's address, TLS and token
// from the environment; the rotary embedding's scaling; the codec spec from -group-size and -sparsity or from the
// bounds. INVALID_ARGUMENT with a sentence.
absl::Status CompleteOptions(const GoFlags& flags, CliOptions& options);

}  // namespace kvcompress
