#include "kvcompress/cli/options.h"

#include <cstdlib>

#include "absl/strings/str_format.h"
#include "kvcompress/base/status_macros.h"
#include "kvcompress/codec/spec.h"

namespace kvcompress {
namespace {

absl::Status Fault(std::string_view text) { return absl::InvalidArgumentError(std::string(text)); }

absl::Status CheckValues(const CliOptions& options) {
  const int64_t group = options.group_size;
  if (group != 32 && group != 64 && group != 128) {
    return Fault(absl::StrFormat("-group-size must be 32, 64 or 128, not %d", group));
  }
  if (!(options.sparsity >= 0 && options.sparsity <= 1)) {
    return Fault(absl::StrFormat("-sparsity must be between 0 and 1, not %g", options.sparsity));
  }
  if (options.threads < 0 || options.threads > 1024) {
    return Fault(absl::StrFormat("-threads must be between 0 and 1024, not %d", options.threads));
  }
  if (options.timeout < absl::ZeroDuration()) return Fault("-timeout must not be negative");
  return absl::OkStatus();
}

absl::Status CheckConflicts(const GoFlags& flags, const CliOptions& options) {
  if (!options.codec.empty() && !options.profile.empty()) return Fault("-codec and -profile exclude each other");
  const std::string_view chooser = !options.codec.empty() ? "-codec" : !options.profile.empty() ? "-profile" : "";
  for (const std::string_view shorthand : {"group-size", "sparsity"}) {
    if (chooser.empty() || !flags.IsSet(shorthand)) continue;
    return Fault(absl::StrFormat("-%s and %s exclude each other: write it into the codec, for example %s", shorthand,
                                 chooser, shorthand == "sparsity" ? "sparse(ratio=0.5)|int4" : "int4(group=32)"));
  }
  if (options.decompress && !chooser.empty()) {
    return Fault(
        absl::StrFormat("%s and -decompress exclude each other: the file says how it was compressed", chooser));
  }
  if (flags.IsSet("server") && flags.IsSet("threads")) {
    return Fault("-threads and -server exclude each other: the daemon has threads of its own");
  }
  return absl::OkStatus();
}

absl::Status CompleteInspect(const GoFlags& flags, CliOptions& options) {
  if (options.decompress || options.metrics_only || !options.output.empty()) {
    return Fault("-inspect excludes -output, -decompress and -metrics-only");
  }
  if (flags.rest().size() > 1) return Fault(absl::StrFormat("unexpected argument \"%s\"", flags.rest()[1]));
  if (!flags.rest().empty() && !options.input.empty()) return Fault("-inspect takes one file, and two are given");
  if (!flags.rest().empty()) options.input = flags.rest()[0];
  return options.input.empty() ? Fault("-input is required") : absl::OkStatus();
}

}  // namespace

void DeclareFlags(GoFlags& flags, CliOptions& options) {
  flags.String("input", &options.input, "string", "Input safetensors file path");
  flags.String("output", &options.output, "string", "Output safetensors file path (required unless -metrics-only)");
  flags.Int("group-size", &options.group_size, "Quantization group size (32, 64, or 128)");
  flags.Float("sparsity", &options.sparsity, "Sparsification ratio (0.0-1.0, 0=disabled)");
  flags.Bool("decompress", &options.decompress, "Enable decompression mode");
  flags.Bool("metrics-only", &options.metrics_only, "Compute metrics without writing output");
  flags.Bool("verbose", &options.verbose, "Enable verbose logging");
  flags.String("server", &options.server, "ADDRESS",
               "Daemon that does the work, instead of this process: HOST:PORT, unix:PATH, or a list with commas of "
               "IP:PORT (environment: KV_COMPRESS_SERVER)");
  flags.String("codec", &options.codec, "SPEC", "Codec chain in place of INT4, for example raw|zstd; help lists all");
  flags.String("profile", &options.profile, "FILE", "JSON file that chooses a codec for each tensor");
  flags.Int("threads", &options.threads, "Threads of the codec in this process (0=one for each CPU)");
  flags.Duration("timeout", &options.timeout, "Give up after this time, for example 30s (0=never)");
  flags.Bool("inspect", &options.inspect, "List what a file holds: -inspect FILE");
  flags.Bool("version", &options.version, "Print the version");
}

absl::Status CompleteOptions(const GoFlags& flags, CliOptions& options) {
  KVC_RETURN_IF_ERROR(CheckValues(options));
  if (options.inspect) return CompleteInspect(flags, options);
  if (!flags.rest().empty()) return Fault(absl::StrFormat("unexpected argument \"%s\"", flags.rest()[0]));
  KVC_RETURN_IF_ERROR(CheckConflicts(flags, options));
  if (options.input.empty()) return Fault("-input is required");
  if (options.output.empty() && !options.metrics_only) return Fault("-output is required");
  // Like the reference: with -metrics-only nothing is written, whatever else is said.
  if (options.metrics_only) options.output.clear();
  const char* server = std::getenv("KV_COMPRESS_SERVER");  // NOLINT(concurrency-mt-unsafe): no thread runs yet
  if (server != nullptr && !flags.IsSet("server")) options.server = server;
  if (options.codec.empty()) {
    options.codec = absl::StrFormat("int4(group=%d)", options.group_size);
    if (options.sparsity > 0) {
      options.codec = absl::StrFormat("sparse(ratio=%s)|%s", FormatReal(options.sparsity), options.codec);
    }
  }
  return absl::OkStatus();
}

}  // namespace kvcompress
