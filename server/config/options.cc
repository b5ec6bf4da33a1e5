#include "server/config/options.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "core/base/status_macros.h"
#include "core/base/strict_json.h"
#include "core/codec/chain_spec.h"
#include "server/config/values.h"
#include "server/net/address.h"
#include "server/net/file_backed.h"

namespace kvcompress {
namespace {

absl::Status Invalid(std::string_view what) { return absl::InvalidArgumentError(absl::StrFormat("%s", what)); }

enum class FlagKind { kValue, kSwitch };

struct Flag {
  std::string_view name;
  std::string_view value;  // its placeholder in the help
  std::string_view help;
  absl::Status (*set)(Options& options, const std::string& text);
  FlagKind kind = FlagKind::kValue;
  bool setting = true;  // also in the environment and in the file
};

// The setter that parses a text with PARSE and keeps the result in FIELD.
#define KVC_SETTER(FIELD, PARSE)                  \
  [](Options& options, const std::string& text) { \
    KVC_ASSIGN_OR_RETURN(options.FIELD, PARSE);   \
    return absl::OkStatus();                      \
  }

constexpr Flag kFlags[] = {
    {"listen", "ADDRESS",
     "where to serve gRPC: HOST:PORT or unix:PATH; more than one with commas or by repeating it (127.0.0.1:50051)",
     [](Options& options, const std::string& text) { return AddListenAddresses(text, options.listen); }},
    {"unix-socket-mode", "MODE", "permissions of unix sockets, in octal (0660)",
     KVC_SETTER(unix_socket_mode, ParseMode(text))},
    {"tls-cert", "FILE",
     "serve TLS on TCP with this certificate, in PEM, with its intermediate ones; read again when it changes",
     KVC_SETTER(tls_cert, ParseFileName(text))},
    {"tls-key", "FILE", "private key of --tls-cert, in PEM", KVC_SETTER(tls_key, ParseFileName(text))},
    {"tls-client-ca", "FILE", "refuse clients without a certificate of these authorities, in PEM (mutual TLS)",
     KVC_SETTER(tls_client_ca, ParseFileName(text))},
    {"token-file", "FILE",
     "refuse calls without one of these bearer tokens, one a line, but for health checks; read again when it changes",
     KVC_SETTER(token_file, ParseFileName(text))},
    {"allow-plaintext", "", "serve without TLS on addresses that other machines can reach: for networks that you trust",
     KVC_SETTER(allow_plaintext, ParseBool(text)), FlagKind::kSwitch},
    {"metrics-listen", "HOST:PORT", "where to serve /metrics; \"off\" or nothing: nowhere (127.0.0.1:9464)",
     [](Options& options, const std::string& text) {
       options.metrics_listen = text == "off" ? "" : text;
       return options.metrics_listen.empty() || IsHostAndPort(text) ? absl::OkStatus()
                                                                    : Invalid("expected HOST:PORT or off");
     }},
    {"shared-memory", "PREFIX",
     "let clients of this machine register shared memory whose keys begin with \"/PREFIX\"; \"off\": nobody (off)",
     [](Options& options, const std::string& text) {
       options.shared_memory_prefix = text == "off" ? "" : text;
       return CheckKeyPrefix(options.shared_memory_prefix);
     }},
    {"foreign-memory", "PREFIX",
     "let clients have shared memory read that another program made, under keys that begin with \"/PREFIX\" and that "
     "they "
     "may write themselves; needs --shared-memory; \"off\": none (off)",
     [](Options& options, const std::string& text) {
       options.foreign_memory_prefix = text == "off" ? "" : text;
       return CheckKeyPrefix(options.foreign_memory_prefix);
     }},
    {"threads", "N", "codec threads; 0: one for each CPU that this process may use (0)",
     KVC_SETTER(threads, ParseCount(text, 0, 1024))},
    {"memory-budget", "BYTES", "memory that all streams may hold together (1GiB)",
     KVC_SETTER(memory_budget, ParseBudget(text))},
    {"max-tensor-bytes", "BYTES", "largest tensor (64GiB)", KVC_SETTER(max_tensor_bytes, ParseBytes(text))},
    {"artifacts", "DIR",
     "directory of the artifacts that codecs name, as in kv(bits=3,artifact=ID): files *.kvcal, renamed into it",
     KVC_SETTER(artifacts, ParseFileName(text))},
    {"artifact-memory", "BYTES", "memory for those that were used last, beside --memory-budget (256MiB)",
     KVC_SETTER(artifact_memory, ParseBytes(text))},
    {"max-streams", "N", "streams at the same time (256)", KVC_SETTER(max_streams, ParseCount(text, 1, 1000000))},
    {"max-streams-per-client", "N",
     "of one client: an IP address, with its certificate and its token; 0: three quarters of --max-streams (0)",
     KVC_SETTER(max_streams_per_client, ParseCount(text, 0, 1000000))},
    {"max-call-rate-per-client", "N", "calls a second of one client, in bursts of as many; 0: any (0)",
     KVC_SETTER(max_call_rate_per_client, ParseCount(text, 0, 1000000))},
    {"max-connections", "N", "connections at the same time (1024)",
     KVC_SETTER(max_connections, ParseCount(text, 1, 1000000))},
    {"max-connections-per-client", "N", "of one IP address; 0: three quarters of --max-connections (0)",
     KVC_SETTER(max_connections_per_client, ParseCount(text, 0, 1000000))},
    {"handshake-timeout", "DURATION", "how long a new connection has for the handshakes of TLS and HTTP/2 (10s)",
     [](Options& options, const std::string& text) {
       KVC_ASSIGN_OR_RETURN(options.handshake_timeout, ParseDuration(text));
       const bool possible = options.handshake_timeout >= std::chrono::milliseconds(100);
       return possible ? absl::OkStatus() : Invalid("expected at least 100ms");
     }},
    {"stream-idle-timeout", "DURATION",
     "how long a stream may wait for a message of its client, ten times as long for a response to be taken; 0: no "
     "limit (60s)",
     KVC_SETTER(stream_idle_timeout, ParseDuration(text))},
    {"adaptive-windows", "",
     "let gRPC's receive windows grow: faster for a few clients, but each connection may take 10 MiB more",
     KVC_SETTER(adaptive_windows, ParseBool(text)), FlagKind::kSwitch},
    {"max-connection-age", "DURATION",
     "ask clients of a connection of this age to open another, so that they spread over new replicas; 0: never (0)",
     KVC_SETTER(max_connection_age, ParseDuration(text))},
    {"max-connection-age-grace", "DURATION",
     "how long calls on a connection of that age may go on; 0: until they end (0)",
     KVC_SETTER(max_connection_age_grace, ParseDuration(text))},
    {"link-bandwidth", "RATE",
     "of the network or disk that caches go over, for example 25Gbit/s or 3GB/s: metrics then say what compression "
     "saves "
     "there; 0: not known (0)",
     KVC_SETTER(link_bandwidth, ParseLink(text))},
    {"default-codec", "SPEC", "codec of tensors that do not name one (int4(group=64))",
     [](Options& options, const std::string& text) {
       options.default_codec = text;
       return ChainSpec::Parse(text).status();
     }},
    {"drain-timeout", "DURATION", "how long calls in flight may go on after SIGTERM (30s)",
     KVC_SETTER(drain_timeout, ParseDuration(text))},
    {"log-level", "LEVEL", "debug, info, warning or error (info)",
     KVC_SETTER(log_level, ParseOneOf(text, {"debug", "info", "warning", "error"}))},
    {"log-format", "FORMAT", "text or json (text)",
     [](Options& options, const std::string& text) {
       options.log_json = text == "json";
       return ParseOneOf(text, {"text", "json"}).status();
     }},
    {"port-file", "FILE", "write the addresses in use to FILE, as JSON, once they are served",
     KVC_SETTER(port_file, absl::StatusOr<std::string>(text))},
    {"config", "FILE", "read flags from a JSON object, for example {\"memory-budget\": \"1GiB\"}",
     [](Options&, const std::string&) { return absl::OkStatus(); }},
    {"healthcheck", "", "ask the daemon at --listen whether it serves, and exit: 0 for yes",
     KVC_SETTER(healthcheck, ParseBool(text)), FlagKind::kSwitch, false},
    {"healthcheck-target", "ADDRESS", "ask there instead", KVC_SETTER(healthcheck_target, ParseTarget(text))},
    {"version", "", "print the version and exit", KVC_SETTER(version, ParseBool(text)), FlagKind::kSwitch, false},
    {"help", "", "print this text and exit", KVC_SETTER(help, ParseBool(text)), FlagKind::kSwitch, false},
};

#undef KVC_SETTER

const Flag* FindFlag(std::string_view name) {
  const Flag* const flag = std::ranges::find(kFlags, name, &Flag::name);
  return flag == std::end(kFlags) ? nullptr : flag;
}

struct Setting {
  const Flag* flag;
  std::string text;
  std::string origin;  // for errors: "--threads", "KV_COMPRESSD_THREADS", "config FILE: threads"
};

absl::StatusOr<std::vector<Setting>> FromArgs(const std::vector<std::string>& args) {
  std::vector<Setting> settings;
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string& arg = args[i];
    const size_t equals = arg.find('=');
    const Flag* flag = absl::StartsWith(arg, "--")
                           ? FindFlag(arg.substr(2, equals == std::string::npos ? equals : equals - 2))
                           : nullptr;
    if (flag == nullptr) return Invalid(absl::StrFormat("unknown argument %s; --help lists all", arg));
    std::string origin = absl::StrFormat("--%s", flag->name);
    if (equals != std::string::npos) {
      settings.push_back({flag, arg.substr(equals + 1), std::move(origin)});
    } else if (flag->kind == FlagKind::kSwitch) {
      settings.push_back({flag, "true", std::move(origin)});
    } else if (i + 1 < args.size()) {
      settings.push_back({flag, args[++i], std::move(origin)});
    } else {
      return Invalid(absl::StrFormat("%s needs a value", origin));
    }
  }
  return settings;
}

std::vector<Setting> FromEnvironment(const std::function<const char*(const char*)>& getenv) {
  std::vector<Setting> settings;
  for (const Flag& flag : kFlags) {
    if (!flag.setting) continue;
    std::string name = absl::StrFormat("KV_COMPRESSD_%s", flag.name);
    absl::AsciiStrToUpper(&name);
    absl::StrReplaceAll({{"-", "_"}}, &name);
    if (const char* text = getenv(name.c_str())) settings.push_back({&flag, text, name});
  }
  return settings;
}

// The text of a JSON value as the command line would have it; an array is a list with commas.
absl::StatusOr<std::string> ToText(const nlohmann::json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_integer() || value.is_boolean()) return value.dump();
  if (!value.is_array()) return Invalid("expected a text, a whole number or a list of texts");
  std::string list;
  for (const nlohmann::json& item : value) {
    if (!item.is_string()) return Invalid("expected a list of texts");
    absl::StrAppendFormat(&list, "%s%s", list.empty() ? "" : ",", item.get<std::string>());
  }
  return list;
}

absl::StatusOr<std::vector<Setting>> FromFile(const std::string& path) {
  const absl::StatusOr<std::vector<std::string>> text = ReadFiles({path});
  if (!text.ok()) return Invalid(absl::StrFormat("config %s", text.status().message()));
  const absl::StatusOr<nlohmann::json> config = ParseStrictJson(text->front());
  if (!config.ok()) return Invalid(absl::StrFormat("config %s: %s", path, config.status().message()));
  if (!config->is_object()) return Invalid(absl::StrFormat("config %s: not a JSON object", path));
  std::vector<Setting> settings;
  for (const auto& [key, value] : config->items()) {
    const Flag* flag = FindFlag(key);
    std::string origin = absl::StrFormat("config %s: %s", path, key);
    if (flag == nullptr || !flag->setting || key == "config")
      return Invalid(absl::StrFormat("%s is not a setting", origin));
    absl::StatusOr<std::string> setting = ToText(value);
    if (!setting.ok()) return Invalid(absl::StrFormat("%s: %s", origin, setting.status().message()));
    settings.push_back({flag, *std::move(setting), std::move(origin)});
  }
  return settings;
}

// The settings of one origin replace those of a lower one; --listen adds up within one.
absl::Status Apply(const std::vector<Setting>& settings, Options& options) {
  const auto is_listen = [](const Setting& setting) { return setting.flag->name == "listen"; };
  if (std::ranges::any_of(settings, is_listen)) options.listen.clear();
  for (const Setting& setting : settings) {
    const absl::Status status = setting.flag->set(options, setting.text);
    if (status.ok()) continue;
    const std::string quoted = absl::StrFormat("\"%s\"", setting.text);
    const std::string text = absl::StrContains(status.message(), quoted) ? "" : quoted + ": ";
    return Invalid(absl::StrFormat("%s: %s%s", setting.origin, text, status.message()));
  }
  return absl::OkStatus();
}

// Refuses settings that do not go together.
absl::Status CheckMemory(const Options& options) {
  if (options.foreign_memory_prefix.empty() || !options.shared_memory_prefix.empty()) return absl::OkStatus();
  return Invalid("--foreign-memory needs --shared-memory");
}

// Refuses settings that would let in strangers, or let them read along, without the operator's explicit wish.
absl::Status CheckProtection(const Options& options) {
  if (options.tls_cert.empty() != options.tls_key.empty()) {
    return Invalid("--tls-cert and --tls-key go together: one is given without the other");
  }
  if (!options.tls_cert.empty()) return absl::OkStatus();
  if (!options.tls_client_ca.empty()) return Invalid("--tls-client-ca needs --tls-cert and --tls-key");
  for (const std::string& address : options.listen) {
    if (IsLoopback(address)) continue;
    if (!options.token_file.empty()) {
      return Invalid(
          absl::StrFormat("--listen %s: other machines can reach this address, and tokens would go there in plaintext: "
                          "give --tls-cert and --tls-key, or listen on a loopback address or unix socket",
                          address));
    }
    if (!options.allow_plaintext) {
      return Invalid(absl::StrFormat(
          "--listen %s: other machines can reach this address, which would serve anybody in plaintext: give --tls-cert "
          "and --tls-key, or listen on a loopback address or unix socket, or take the risk with --allow-plaintext",
          address));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Options> ParseOptions(const std::vector<std::string>& args,
                                     const std::function<const char*(const char*)>& getenv) {
  KVC_ASSIGN_OR_RETURN(const std::vector<Setting> from_args, FromArgs(args));
  const std::vector<Setting> from_environment = FromEnvironment(getenv);
  std::string config;
  for (const std::vector<Setting>* settings : {&from_environment, &from_args}) {
    for (const Setting& setting : *settings) {
      if (setting.flag->name == "config") config = setting.text;
    }
  }
  Options options;
  if (!config.empty()) {
    KVC_ASSIGN_OR_RETURN(const std::vector<Setting> from_file, FromFile(config));
    KVC_RETURN_IF_ERROR(Apply(from_file, options));
  }
  KVC_RETURN_IF_ERROR(Apply(from_environment, options));
  KVC_RETURN_IF_ERROR(Apply(from_args, options));
  const bool serves = !options.healthcheck && !options.version && !options.help;
  if (serves) {
    KVC_RETURN_IF_ERROR(CheckMemory(options));
    KVC_RETURN_IF_ERROR(CheckProtection(options));
  }
  return options;
}

std::string OptionsUsage() {
  std::string text =
      "Usage: kv-compressd [flags]\n\nCompresses KV caches over gRPC (service kvcompress.v1.KvCompression).\n\n";
  for (const Flag& flag : kFlags) {
    const std::string left = absl::StrFormat("--%s%s%s", flag.name, flag.value.empty() ? "" : " ", flag.value);
    absl::StrAppendFormat(&text, "  %-35s %s\n", left, flag.help);
  }
  text +=
      "\nEvery setting is also an environment variable, for example KV_COMPRESSD_MEMORY_BUDGET=2GiB, and a key of the\n"
      "--config file. The command line comes before the environment, which comes before the file.\n";
  return text;
}

}  // namespace kvcompress
