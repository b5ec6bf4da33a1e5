#include "kvcompress/cli/remote.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "kvcompress/base/file.h"
#include "kvcompress/base/status_macros.h"

namespace kvcompress {
namespace {

absl::StatusOr<std::string> ReadText(std::string_view flag, const std::string& path) {
  constexpr uint64_t kMaxBytes = uint64_t{1} << 20;
  if (path.empty()) return "";
  const auto file = FileSource::Open(path);
  if (!file.ok()) {
    return absl::Status(file.status().code(), absl::StrFormat("read %s: %s", flag, file.status().message()));
  }
  if ((*file)->size() > kMaxBytes)
    return absl::InvalidArgumentError(absl::StrFormat("read %s: larger than 1 MiB", flag));
  std::vector<std::byte> scratch;
  KVC_ASSIGN_OR_RETURN(const ByteSpan text, (*file)->Get(0, (*file)->size(), scratch));
  return std::string(AsText(text));
}

// gRPC would only say that it cannot connect.
absl::StatusOr<std::string> ReadPem(std::string_view flag, const std::string& path) {
  KVC_ASSIGN_OR_RETURN(std::string text, ReadText(flag, path));
  if (!path.empty() && !absl::StrContains(text, "-----BEGIN ")) {
    return absl::InvalidArgumentError(absl::StrFormat("read %s: %s: not in PEM", flag, path));
  }
  return text;
}

absl::StatusOr<std::string> ReadToken(const std::string& path) {
  KVC_ASSIGN_OR_RETURN(const std::string text, ReadText("-token-file", path));
  const absl::string_view token = absl::StripAsciiWhitespace(absl::string_view(text).substr(0, text.find('\n')));
  // A header with other characters would end the call, or the process.
  const auto fits = [](char c) { return absl::ascii_isgraph(c); };
  if (!path.empty() && (token.empty() || !std::all_of(token.begin(), token.end(), fits))) {
    return absl::InvalidArgumentError(absl::StrFormat("read -token-file: %s: its first line is no token", path));
  }
  return std::string(token);
}

}  // namespace

absl::StatusOr<RemoteOptions> ToRemoteOptions(const CliOptions& options) {
  RemoteOptions remote = {.address = options.server};
  KVC_ASSIGN_OR_RETURN(remote.token, ReadToken(options.token_file));
  if (!options.tls) return remote;
  ClientTls& tls = remote.tls.emplace();
  KVC_ASSIGN_OR_RETURN(tls.ca, ReadPem("-tls-ca", options.tls_ca));
  KVC_ASSIGN_OR_RETURN(tls.certificate, ReadPem("-tls-cert", options.tls_cert));
  KVC_ASSIGN_OR_RETURN(tls.key, ReadPem("-tls-key", options.tls_key));
  tls.server_name = options.tls_server_name;
  return remote;
}

}  // namespace kvcompress
