#include "kvcompress/cli/remote.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "kvcompress/base/status_macros.h"
#include "kvcompress/cli/text_file.h"

namespace kvcompress {
namespace {

constexpr uint64_t kMaxMebibytes = 1;  // of a file

// gRPC would only say that it cannot connect.
absl::StatusOr<std::string> ReadPem(std::string_view flag, const std::string& path) {
  if (path.empty()) return "";
  KVC_ASSIGN_OR_RETURN(std::string text, ReadText(flag, path, kMaxMebibytes));
  if (!absl::StrContains(text, "-----BEGIN ")) {
    return absl::InvalidArgumentError(absl::StrFormat("read %s: %s: not in PEM", flag, path));
  }
  return text;
}

absl::StatusOr<std::string> ReadToken(const std::string& path) {
  if (path.empty()) return "";
  KVC_ASSIGN_OR_RETURN(const std::string text, ReadText("-token-file", path, kMaxMebibytes));
  const absl::string_view token = absl::StripAsciiWhitespace(absl::string_view(text).substr(0, text.find('\n')));
  // A header with other characters would end the call, or the process.
  const auto fits = [](char c) { return absl::ascii_isgraph(c); };
  if (token.empty() || !std::all_of(token.begin(), token.end(), fits)) {
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
