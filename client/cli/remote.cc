#include "client/cli/remote.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"
#include "client/cli/text_file.h"
#include "core/base/status_macros.h"
#include "proto/wire/pem/pem.h"

namespace kvcompress {
namespace {

constexpr uint64_t kMaxMebibytes = 1;  // of a file

absl::StatusOr<PemFile> ReadPem(const std::string& flag, const std::string& path) {
  KVC_ASSIGN_OR_RETURN(std::string text, ReadText(flag, path, kMaxMebibytes));
  return PemFile{flag, absl::StrFormat("read %s: %s", flag, path), std::move(text)};
}

// Parses what it reads: gRPC would only say that it cannot connect.
absl::StatusOr<ClientTls> ReadTls(const CliOptions& options) {
  ClientTls tls;
  tls.server_name = options.tls_server_name;
  if (!options.tls_ca.empty()) {
    KVC_ASSIGN_OR_RETURN(const PemFile ca, ReadPem("-tls-ca", options.tls_ca));
    KVC_RETURN_IF_ERROR(ParseCertificates(ca).status());
    tls.ca = ca.text;
  }
  if (options.tls_cert.empty()) return tls;
  KVC_ASSIGN_OR_RETURN(const PemFile certificate, ReadPem("-tls-cert", options.tls_cert));
  KVC_ASSIGN_OR_RETURN(const PemFile key, ReadPem("-tls-key", options.tls_key));
  KVC_RETURN_IF_ERROR(ParseKeyPair(certificate, key).status());
  tls.certificate = certificate.text;
  tls.key = key.text;
  return tls;
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
  KVC_ASSIGN_OR_RETURN(remote.tls, ReadTls(options));
  return remote;
}

}  // namespace kvcompress
