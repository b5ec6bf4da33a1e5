#include "proto/wire/pem/pem.h"

#include <openssl/err.h>
#include <openssl/pem.h>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace kvcompress {
namespace {

using Bio = std::unique_ptr<BIO, FreeBy<BIO_free>>;

// Without this OpenSSL would ask the terminal.
int NoPassword(char*, int, int, void*) { return -1; }

Bio ReaderOf(const PemFile& file) { return Bio(BIO_new_mem_buf(file.text.data(), static_cast<int>(file.text.size()))); }

absl::Status Refused(const PemFile& file, std::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(file.title, ": ", absl::string_view(why.data(), why.size())));
}

}  // namespace

absl::StatusOr<std::vector<Certificate>> ParseCertificates(const PemFile& file) {
  const Bio bio = ReaderOf(file);
  std::vector<Certificate> certificates;
  while (X509* const certificate = PEM_read_bio_X509(bio.get(), nullptr, NoPassword, nullptr)) {
    certificates.emplace_back(certificate);
  }
  // The end of the text is an error to OpenSSL, too.
  if (ERR_GET_REASON(ERR_peek_last_error()) != PEM_R_NO_START_LINE) certificates.clear();
  ERR_clear_error();
  if (certificates.empty()) return Refused(file, "no certificate in PEM is in it");
  return certificates;
}

absl::StatusOr<KeyPair> ParseKeyPair(const PemFile& certificates, const PemFile& key) {
  KeyPair pair;
  KVC_ASSIGN_OR_RETURN(pair.certificates, ParseCertificates(certificates));
  pair.key.reset(PEM_read_bio_PrivateKey(ReaderOf(key).get(), nullptr, NoPassword, nullptr));
  const bool fits = pair.key != nullptr && X509_check_private_key(pair.certificates[0].get(), pair.key.get()) == 1;
  ERR_clear_error();
  if (pair.key == nullptr) return Refused(key, "no private key in PEM, unencrypted, is in it");
  if (!fits) return Refused(key, absl::StrCat("the key is not that of the first certificate of ", certificates.flag));
  return pair;
}

}  // namespace kvcompress
