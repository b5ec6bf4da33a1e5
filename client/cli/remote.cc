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

absl::Status Fault(std::string_view flag, const std::string& path, std::string_view what) {
  return absl::InvalidArgumentError(absl::StrFormat("read %s: %s: %s", flag, path, what));
}

// gRPC would only say that it cannot connect.
absl::StatusOr<ClientTls> ReadTls(const CliOptions& options) {
  ClientTls tls;
  tls.server_name = options.tls_server_name;
  if (!options.tls_ca.empty()) {
    KVC_ASSIGN_OR_RETURN(tls.ca, ReadText("-tls-ca", options.tls_ca, kMaxMebibytes));
    if (ParseCertificates(tls.ca).empty()) return Fault("-tls-ca", options.tls_ca, "no certificate in PEM is in it");
  }
  if (options.tls_cert.empty()) return tls;
  KVC_ASSIGN_OR_RETURN(tls.certificate, ReadText("-tls-cert", options.tls_cert, kMaxMebibytes));
  KVC_ASSIGN_OR_RETURN(tls.key, ReadText("-tls-key", options.tls_key, kMaxMebibytes));
  const std::vector<Certificate> certificates = ParseCertificates(tls.certificate);
  if (certificates.empty()) return Fault("-tls-cert", options.tls_cert, "no certificate in PEM is in it");
  const PrivateKey key = ParsePrivateKey(tls.key);
  if (key == nullptr) return Fault("-tls-key", options.tls_key, "no private key in PEM, unencrypted, is in it");
  if (!IsKeyOf(certificates.front(), key)) {
    return Fault("-tls-key", options.tls_key, "the key is not that of the first certificate of -tls-cert");
  }
  return tls;
}

absl::StatusOr<std::string> ReadToken(const std::string& path) {
  if (path.empty()) return "";
  KVC_ASSIGN_OR_RETURN(const std::string text, ReadText("-token-file", path, kMaxMebibytes));
  const absl::string_view token = absl::StripAsciiWhitespace(absl::string_view(text).substr(0, text.find('\n')));
  // A header with other characters would end the call, or the process.
  const auto fits = [](char c) { return absl::ascii_isgraph(c); };
  if (token.empty() || !std::all_of(token.begin(), token.end(), fits)) {
    return Fault("-token-file", path, "its first line is no token");
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
