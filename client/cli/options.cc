#include "client/cli/options.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <initializer_list>
#include <limits>
#include <span>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "core/base/bandwidth.h"
#include "core/base/status_macros.h"
#include "core/base/tensor.h"
#include "core/codec/chain_spec.h"
#include "core/codec/named_chains.h"
#include "core/codec/registry.h"
#include "core/profile/rope_scaling.h"

namespace kvcompress {
namespace {

absl::Status Fault(std::string_view text) { return absl::InvalidArgumentError(std::string(text)); }

// Whether two paths lead to one file, through a link perhaps.
bool AreOneFile(const std::string& a, const std::string& b) {
  std::error_code error;
  return !a.empty() && !b.empty() && std::filesystem::equivalent(a, b, error) && !error;
}

// A pipe cannot take what appears whole or not at all.
absl::Status CheckOutputFile(std::string_view flag, const std::string& path) {
  std::error_code error;
  if (path != "-" && !std::filesystem::is_fifo(path, error)) return absl::OkStatus();
  return Fault(absl::StrFormat("%s %s: the output appears whole or not at all, which a pipe cannot do: name a file",
                               flag, path));
}

constexpr std::string_view kBoundFlags[] = {"min-snr", "min-token-snr", "max-error", "min-cosine"};

// The first of the bounds' flags that was given, with its dash; empty without any.
std::string BoundFlag(const GoFlags& flags) {
  for (const std::string_view flag : kBoundFlags) {
    if (flags.IsSet(flag)) return absl::StrFormat("-%s", flag);
  }
  return "";
}

absl::Status CheckBounds(const GoFlags& flags, const CliOptions& options) {
  if (flags.IsSet("min-snr") && !(options.min_snr > 0 && options.min_snr <= 200)) {
    return Fault(absl::StrFormat("-min-snr must be above 0 and at most 200 dB, not %g", options.min_snr));
  }
  if (flags.IsSet("min-token-snr") && !(options.min_token_snr > 0 && options.min_token_snr <= 200)) {
    return Fault(absl::StrFormat("-min-token-snr must be above 0 and at most 200 dB, not %g", options.min_token_snr));
  }
  if (flags.IsSet("max-error") && !(options.max_error > 0 && options.max_error <= std::numeric_limits<float>::max())) {
    return Fault(absl::StrFormat("-max-error must be above 0 and finite, not %g", options.max_error));
  }
  if (flags.IsSet("min-cosine") && !(options.min_cosine > 0 && options.min_cosine <= 1)) {
    return Fault(absl::StrFormat("-min-cosine must be above 0 and at most 1, not %g", options.min_cosine));
  }
  return absl::OkStatus();
}

absl::Status CheckBits(const GoFlags& flags, const CliOptions& options) {
  if (!flags.IsSet("bits")) return absl::OkStatus();
  const Parameter& bits = *std::ranges::find(kKv.parameters, "bits", &Parameter::name);
  if (options.bits >= bits.min && options.bits <= bits.max) return absl::OkStatus();
  return Fault(absl::StrFormat("-bits must be between %g and %g, not %g", bits.min, bits.max, options.bits));
}

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
  if (options.on_nonfinite != "error" && options.on_nonfinite != "lossless") {
    return Fault(absl::StrFormat("-on-nonfinite must be error or lossless, not \"%s\"", options.on_nonfinite));
  }
  if (!std::isfinite(options.rope_theta) || options.rope_theta < 0) return Fault("-rope-theta must not be negative");
  if (options.timeout < absl::ZeroDuration()) return Fault("-timeout must not be negative");
  return absl::OkStatus();
}

constexpr std::string_view kRopeFlags[] = {"rope-theta",  "rope-pairs",   "rope-dims",
                                           "rope-offset", "rope-scaling", "rope-start"};

// Refuses two flags that each say what codec to take.
absl::Status CheckChoosers(const GoFlags& flags, const CliOptions& options) {
  const std::string_view chooser = !options.codec.empty() ? "-codec" : !options.profile.empty() ? "-profile" : "";
  const std::string bound = BoundFlag(flags);
  const std::string budget = flags.IsSet("bits") ? "-bits" : bound;  // or the bound, which excludes it
  if (!bound.empty() && budget != bound) {
    return Fault(
        absl::StrFormat("-bits and %s exclude each other: a budget says what is written, a bound what is kept", bound));
  }
  if (!budget.empty() && !chooser.empty()) {
    return Fault(absl::StrFormat("%s and %s exclude each other: write it into the codec, for example %s", budget,
                                 chooser, bound.empty() ? "kv(bits=3)" : "bounded(min_snr=40)"));
  }
  for (const std::string_view shorthand : {"group-size", "sparsity"}) {
    if (!flags.IsSet(shorthand)) continue;
    if (!budget.empty()) {
      return Fault(absl::StrFormat("-%s and %s exclude each other: a %s chooses the codec", shorthand, budget,
                                   bound.empty() ? "budget" : "bound"));
    }
    if (chooser.empty()) continue;
    return Fault(absl::StrFormat("-%s and %s exclude each other: write it into the codec, for example %s", shorthand,
                                 chooser, shorthand == "sparsity" ? "sparse(ratio=0.5)|int4" : "int4(group=32)"));
  }
  if (options.decompress && !(chooser.empty() && budget.empty())) {
    return Fault(absl::StrFormat("%s and -decompress exclude each other: the file says how it was compressed",
                                 chooser.empty() ? budget : chooser));
  }
  return absl::OkStatus();
}

absl::Status CheckConflicts(const GoFlags& flags, const CliOptions& options) {
  KVC_RETURN_IF_ERROR(CheckChoosers(flags, options));
  if (options.decompress && flags.IsSet("on-nonfinite")) {
    return Fault("-on-nonfinite and -decompress exclude each other: the file says how it was compressed");
  }
  for (const std::string_view flag : kRopeFlags) {
    if (!options.decompress || !flags.IsSet(flag)) continue;
    return Fault(absl::StrFormat("-%s and -decompress exclude each other: the file says how it was compressed", flag));
  }
  if (flags.IsSet("server") && flags.IsSet("threads")) {
    return Fault("-threads and -server exclude each other: the daemon has threads of its own");
  }
  if (flags.IsSet("server") && flags.IsSet("artifacts")) {
    return Fault("-artifacts and -server exclude each other: the daemon has artifacts of its own");
  }
  return absl::OkStatus();
}

absl::Status Unexpected(const std::string& word) {
  return Fault(absl::StrFormat("unexpected argument \"%s\"%s", word,
                               word.starts_with('-') ? ": flags stand before all other arguments" : ""));
}

// Refuses flags that this mode has no use for, which it would ignore in silence.
absl::Status TakesOnly(const GoFlags& flags, std::string_view mode, std::initializer_list<std::string_view> others) {
  for (const std::string& flag : flags.given()) {
    if (flag != mode && std::find(others.begin(), others.end(), flag) == others.end()) {
      return Fault(absl::StrFormat("-%s and -%s exclude each other", mode, flag));
    }
  }
  return absl::OkStatus();
}

constexpr std::string_view kInspectFlags[] = {"format", "per-head"};
constexpr std::string_view kCalibrateFlags[] = {"weights", "group-dim", "config"};
constexpr std::string_view kSweepFlags[] = {"max-key-mae", "max-value-mae", "min-key-cosine", "min-value-cosine",
                                            "report",      "bandwidth",     "context-tokens"};

// Refuses a mode's flags without the mode.
absl::Status NeedsMode(const GoFlags& flags, std::span<const std::string_view> own, std::string_view mode) {
  for (const std::string_view flag : own) {
    if (flags.IsSet(flag)) return Fault(absl::StrFormat("-%s needs %s", flag, mode));
  }
  return absl::OkStatus();
}

// Checks the embedding's flags, and reads its scaling.
absl::Status CompleteRope(const GoFlags& flags, CliOptions& options) {
  if (options.rope_pairs != "half" && options.rope_pairs != "interleaved") {
    return Fault(absl::StrFormat("-rope-pairs must be half or interleaved, not %s", options.rope_pairs));
  }
  if (options.rope_dims < 0 || options.rope_dims % 2 != 0) {
    return Fault(absl::StrFormat("-rope-dims must be an even number of channels, not %d", options.rope_dims));
  }
  if (options.rope_start < 0 || options.rope_start > int64_t{1} << 48) {
    return Fault(absl::StrFormat("-rope-start must be a position, not %d", options.rope_start));
  }
  if (options.rope_offset < 0) {
    return Fault(absl::StrFormat("-rope-offset must be a channel, not %d", options.rope_offset));
  }
  for (const std::string_view flag : {"rope-pairs", "rope-dims", "rope-offset", "rope-scaling"}) {
    if (flags.IsSet(flag) && options.rope_theta == 0) return Fault(absl::StrFormat("-%s needs -rope-theta", flag));
  }
  if (flags.IsSet("rope-theta") && options.rope_theta < 1) {
    return Fault(absl::StrFormat("-rope-theta must be at least 1, not %g", options.rope_theta));
  }
  if (!flags.IsSet("rope-scaling")) return absl::OkStatus();
  const absl::StatusOr<simd::RotaryScaling> scaling = ParseRopeScaling(options.rope_scaling, options.rope_theta);
  if (!scaling.ok()) return Fault(absl::StrFormat("-rope-scaling: %s", scaling.status().message()));
  options.scaling = *scaling;
  return absl::OkStatus();
}

absl::Status CompleteInspect(const GoFlags& flags, CliOptions& options) {
  KVC_RETURN_IF_ERROR(TakesOnly(flags, "inspect",
                                {"input", "verbose", "format", "per-head", "rope-theta", "rope-pairs", "rope-dims",
                                 "rope-offset", "rope-scaling", "rope-start"}));
  if (options.format != "table" && options.format != "json" && options.format != "csv") {
    return Fault(absl::StrFormat("-format must be table, json or csv, not %s", options.format));
  }
  KVC_RETURN_IF_ERROR(CompleteRope(flags, options));
  if (flags.IsSet("rope-start") && options.rope_theta == 0) return Fault("-rope-start needs -rope-theta");
  if (flags.rest().size() > 1) return Unexpected(flags.rest()[1]);
  if (!flags.rest().empty() && !options.input.empty()) return Fault("-inspect takes one file, and two are given");
  if (!flags.rest().empty()) options.input = flags.rest()[0];
  return options.input.empty() ? Fault("-input is required") : absl::OkStatus();
}

absl::Status CompleteCalibrate(const GoFlags& flags, CliOptions& options) {
  KVC_RETURN_IF_ERROR(
      TakesOnly(flags, "calibrate",
                {"input", "output", "weights", "group-dim", "config", "threads", "verbose", "rope-theta", "rope-pairs",
                 "rope-dims", "rope-offset", "rope-scaling", "rope-start"}));
  if (flags.IsSet("config") && flags.IsSet("group-dim")) {
    return Fault("-config and -group-dim exclude each other: ranks are of single heads");
  }
  if (options.group_dim != 64 && options.group_dim != 128 && options.group_dim != 256) {
    return Fault(absl::StrFormat("-group-dim must be 64, 128 or 256, not %d", options.group_dim));
  }
  KVC_RETURN_IF_ERROR(CompleteRope(flags, options));
  if (!flags.rest().empty()) return Unexpected(flags.rest()[0]);
  options.caches = absl::StrSplit(options.input, ',', absl::SkipEmpty());
  if (options.caches.empty()) return Fault("-input is required");
  if (options.output.empty()) return Fault("-output is required");
  for (const std::string& path : options.caches) {
    if (AreOneFile(path, options.output)) return Fault("-output is one of the inputs, which it would replace");
  }
  if (AreOneFile(options.weights, options.output)) return Fault("-output is the weights, which it would replace");
  if (AreOneFile(options.config, options.output)) return Fault("-output is the config, which it would replace");
  return absl::OkStatus();
}

// Reads the bandwidths.
absl::Status CompleteLinks(const GoFlags& flags, CliOptions& options) {
  if (flags.IsSet("context-tokens") && !flags.IsSet("bandwidth")) return Fault("-context-tokens needs -bandwidth");
  if (options.context_tokens < 1 || options.context_tokens > int64_t{1} << 48) {
    return Fault(absl::StrFormat("-context-tokens must be a number of tokens, not %d", options.context_tokens));
  }
  if (!flags.IsSet("bandwidth")) return absl::OkStatus();
  for (const std::string& text : std::vector<std::string>(absl::StrSplit(options.bandwidth, ','))) {
    const absl::StatusOr<double> bandwidth = ParseBandwidth(text);
    if (!bandwidth.ok()) return Fault(absl::StrFormat("-bandwidth: %s", bandwidth.status().message()));
    options.links.push_back({.text = std::string(absl::StripAsciiWhitespace(text)), .bandwidth = *bandwidth});
  }
  return absl::OkStatus();
}

absl::Status CompleteSweep(const GoFlags& flags, CliOptions& options) {
  KVC_RETURN_IF_ERROR(
      TakesOnly(flags, "sweep",
                {"input", "report", "format", "codec", "artifacts", "threads", "verbose", "bandwidth", "context-tokens",
                 "max-key-mae", "max-value-mae", "min-key-cosine", "min-value-cosine", "rope-theta", "rope-pairs",
                 "rope-dims", "rope-offset", "rope-scaling", "rope-start"}));
  KVC_RETURN_IF_ERROR(CompleteRope(flags, options));
  if (!flags.IsSet("format")) options.format = "json";
  if (options.format != "table" && options.format != "json") {
    return Fault(absl::StrFormat("-format of -sweep must be table or json, not %s", options.format));
  }
  if (!flags.IsSet("threads")) options.threads = 1;
  if (flags.IsSet("artifacts") && options.codec.empty()) return Fault("-artifacts needs -codec, which names them");
  KVC_RETURN_IF_ERROR(CompleteLinks(flags, options));
  for (const std::string& text : std::vector<std::string>(absl::StrSplit(options.codec, ' ', absl::SkipEmpty()))) {
    KVC_ASSIGN_OR_RETURN(const ChainSpec spec, ChainSpec::Parse(text));
    if (std::ranges::find(options.sweep_specs, spec.text()) == options.sweep_specs.end()) {
      options.sweep_specs.push_back(spec.text());
    }
  }
  if (flags.IsSet("codec") && options.sweep_specs.empty()) return Fault("-codec of -sweep names no codec");
  for (const auto& [flag, value] :
       {std::pair("max-key-mae", options.max_key_mae), std::pair("max-value-mae", options.max_value_mae)}) {
    if (flags.IsSet(flag) && !(value > 0 && std::isfinite(value))) {
      return Fault(absl::StrFormat("-%s must be above 0 and finite, not %g", flag, value));
    }
  }
  for (const auto& [flag, value] :
       {std::pair("min-key-cosine", options.min_key_cosine), std::pair("min-value-cosine", options.min_value_cosine)}) {
    if (flags.IsSet(flag) && !(value > 0 && value <= 1)) {
      return Fault(absl::StrFormat("-%s must be above 0 and at most 1, not %g", flag, value));
    }
  }
  if (!flags.rest().empty()) return Unexpected(flags.rest()[0]);
  if (AreOneFile(options.input, options.report)) return Fault("-report is the input, which it would replace");
  return options.input.empty() ? Fault("-input is required") : absl::OkStatus();
}

std::string FromEnvironment(const char* name) {
  const char* const value = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): no thread runs yet
  return value == nullptr ? "" : value;
}

// Completes the server's address, TLS and token from the environment, which flags overrule.
absl::Status CompleteServer(const GoFlags& flags, CliOptions& options) {
  if (!flags.IsSet("server")) options.server = FromEnvironment("KV_COMPRESS_SERVER");
  const struct {
    std::string_view flag;
    const char* variable;
    std::string& value;
  } settings[] = {{"tls-ca", "KV_COMPRESS_TLS_CA", options.tls_ca},
                  {"tls-cert", "KV_COMPRESS_TLS_CERT", options.tls_cert},
                  {"tls-key", "KV_COMPRESS_TLS_KEY", options.tls_key},
                  {"tls-server-name", "KV_COMPRESS_TLS_SERVER_NAME", options.tls_server_name},
                  {"token-file", "KV_COMPRESS_TOKEN_FILE", options.token_file}};
  for (const auto& setting : settings) {
    if (flags.IsSet(setting.flag) && options.server.empty()) {
      return Fault(absl::StrFormat("-%s needs -server", setting.flag));
    }
    if (!flags.IsSet(setting.flag)) setting.value = FromEnvironment(setting.variable);
    options.tls = options.tls || (setting.flag != "token-file" && !setting.value.empty() && !flags.IsSet("tls"));
  }
  if (flags.IsSet("tls") && options.server.empty()) return Fault("-tls needs -server");
  if (const std::string tls = FromEnvironment("KV_COMPRESS_TLS"); !flags.IsSet("tls") && !tls.empty()) {
    bool wanted = false;
    if (!ParseBool(tls, wanted)) return Fault(absl::StrFormat("KV_COMPRESS_TLS is \"%s\", not true or false", tls));
    options.tls = options.tls || wanted;
  }
  if (options.tls_cert.empty() != options.tls_key.empty()) return Fault("-tls-cert and -tls-key go together");
  return absl::OkStatus();
}

absl::Status CompleteFingerprint(const GoFlags& flags, CliOptions& options) {
  if (!flags.IsSet("fingerprint")) return absl::OkStatus();
  std::string& text = options.fingerprint;
  if (text.empty() || text.size() % 2 != 0 || text.size() > 2 * kMaxFingerprintBytes ||
      !std::ranges::all_of(text, absl::ascii_isxdigit)) {
    return Fault(
        absl::StrFormat("-fingerprint must be 1 to %d bytes in hexadecimal, not \"%s\"", kMaxFingerprintBytes, text));
  }
  text = absl::HexStringToBytes(text);
  return absl::OkStatus();
}

// The codec that the budget, the bounds or the shorthands stand for.
std::string ChosenCodec(const GoFlags& flags, const CliOptions& options) {
  if (flags.IsSet("bits")) return absl::StrFormat("%s(bits=%s)", kKv.name, FormatReal(options.bits));
  if (!BoundFlag(flags).empty()) {
    const std::string token_snr =
        options.min_token_snr > 0 ? absl::StrFormat("min_token_snr=%s,", FormatReal(options.min_token_snr)) : "";
    return absl::StrFormat("bounded(min_snr=%s,%smax_error=%s,min_cosine=%s)|rans", FormatReal(options.min_snr),
                           token_snr, FormatReal(options.max_error), FormatReal(options.min_cosine));
  }
  std::string int4 = absl::StrFormat("int4(group=%d)", options.group_size);
  if (options.sparsity == 0) return int4;
  return absl::StrFormat("sparse(ratio=%s)|%s", FormatReal(options.sparsity), int4);
}

}  // namespace

absl::Status CompleteOptions(const GoFlags& flags, CliOptions& options) {
  KVC_RETURN_IF_ERROR(CheckValues(options));
  KVC_RETURN_IF_ERROR(CheckBounds(flags, options));
  KVC_RETURN_IF_ERROR(CheckBits(flags, options));
  KVC_RETURN_IF_ERROR(CheckOutputFile("-output", options.output));
  KVC_RETURN_IF_ERROR(CheckOutputFile("-report", options.report));
  if (options.sweep) return CompleteSweep(flags, options);
  if (options.calibrate) return CompleteCalibrate(flags, options);
  KVC_RETURN_IF_ERROR(NeedsMode(flags, kSweepFlags, "-sweep"));
  KVC_RETURN_IF_ERROR(NeedsMode(flags, kCalibrateFlags, "-calibrate"));
  if (options.inspect) return CompleteInspect(flags, options);
  KVC_RETURN_IF_ERROR(NeedsMode(flags, kInspectFlags, "-inspect"));
  if (!flags.rest().empty()) return Unexpected(flags.rest()[0]);
  KVC_RETURN_IF_ERROR(CheckConflicts(flags, options));
  KVC_RETURN_IF_ERROR(CompleteRope(flags, options));
  KVC_RETURN_IF_ERROR(CompleteFingerprint(flags, options));
  if (options.input.empty()) return Fault("-input is required");
  if (options.output.empty() && !options.metrics_only) return Fault("-output is required");
  // Like the reference: with -metrics-only nothing is written, whatever else is said.
  if (options.metrics_only) options.output.clear();
  if (AreOneFile(options.output, options.profile)) return Fault("-output is the profile, which it would replace");
  KVC_RETURN_IF_ERROR(CompleteServer(flags, options));
  if (options.codec.empty() && options.profile.empty()) options.codec = ChosenCodec(flags, options);
  return absl::OkStatus();
}

}  // namespace kvcompress
