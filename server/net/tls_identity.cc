#include "server/net/tls_identity.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <ctime>

#include "absl/strings/str_format.h"
#include "proto/wire/pem/pem.h"

namespace kvcompress {
namespace {

using Context = std::unique_ptr<SSL_CTX, FreeBy<SSL_CTX_free>>;

absl::Status Refused(std::string_view flag) {
  const char* const reason = ERR_reason_error_string(ERR_peek_last_error());
  ERR_clear_error();
  return absl::InvalidArgumentError(
      absl::StrFormat("%s: refused: %s", flag, reason == nullptr ? "unknown reason" : reason));
}

// Whether this machine's OpenSSL allows the key's length and the certificates' digests: gRPC's own context obeys the
// same policy.
absl::Status CheckPolicy(const KeyPair& pair) {
  const Context context(SSL_CTX_new(TLS_method()));
  if (context == nullptr || SSL_CTX_use_certificate(context.get(), pair.certificates[0].get()) != 1) {
    return Refused("--tls-cert");
  }
  for (size_t i = 1; i < pair.certificates.size(); ++i) {
    if (SSL_CTX_add1_chain_cert(context.get(), pair.certificates[i].get()) != 1) return Refused("--tls-cert");
  }
  if (SSL_CTX_use_PrivateKey(context.get(), pair.key.get()) != 1) return Refused("--tls-key");
  return absl::OkStatus();
}

absl::Time ExpiryOf(const X509& certificate) {
  std::tm time{};
  return ASN1_TIME_to_tm(X509_get0_notAfter(&certificate), &time) == 1 ? absl::FromTM(time, absl::UTCTimeZone())
                                                                       : absl::InfinitePast();
}

}  // namespace

absl::StatusOr<TlsIdentity> MakeTlsIdentity(const std::vector<std::string>& contents) {
  TlsIdentity identity = {.certificates = contents[0],
                          .key = contents[1],
                          .client_ca = contents.size() > 2 ? contents[2] : "",
                          .expires = absl::InfinitePast()};
  KVC_ASSIGN_OR_RETURN(const KeyPair pair, ParseKeyPair({"--tls-cert", "--tls-cert", identity.certificates},
                                                        {"--tls-key", "--tls-key", identity.key}));
  KVC_RETURN_IF_ERROR(CheckPolicy(pair));
  if (contents.size() > 2) {
    KVC_RETURN_IF_ERROR(ParseCertificates({"--tls-client-ca", "--tls-client-ca", identity.client_ca}).status());
  }
  identity.expires = ExpiryOf(*pair.certificates[0]);
  return identity;
}

absl::StatusOr<std::unique_ptr<TlsIdentityFiles>> LoadTlsIdentity(const std::string& certificate,
                                                                  const std::string& key,
                                                                  const std::string& client_ca) {
  if (certificate.empty()) return nullptr;
  std::vector<std::string> paths = {certificate, key};
  if (!client_ca.empty()) paths.push_back(client_ca);
  return TlsIdentityFiles::Load("TLS certificate", std::move(paths), MakeTlsIdentity);
}

}  // namespace kvcompress
