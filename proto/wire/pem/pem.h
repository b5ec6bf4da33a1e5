#pragma once

#include <openssl/evp.h>
#include <openssl/x509.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

// Certificates and private keys in PEM, as both sides are given them: gRPC itself says little of those that it cannot
// use.
namespace kvcompress {

template <auto kFree>
struct FreeBy {
  template <typename T>
  void operator()(T* object) const {
    kFree(object);
  }
};
using Certificate = std::unique_ptr<X509, FreeBy<X509_free>>;
using PrivateKey = std::unique_ptr<EVP_PKEY, FreeBy<EVP_PKEY_free>>;

// What one side shows to the other.
struct KeyPair {
  std::vector<Certificate> certificates;  // its own first, then the intermediate ones
  PrivateKey key;                         // of the first
};

struct PemFile {
  std::string flag;   // that names the file
  std::string title;  // what errors about it begin with
  std::string text;
};

// At least one certificate. INVALID_ARGUMENT without any, and when one of them is damaged.
absl::StatusOr<std::vector<Certificate>> ParseCertificates(const PemFile& file);

// INVALID_ARGUMENT as above, for a key that is missing or encrypted, and for one that is not the first certificate's.
absl::StatusOr<KeyPair> ParseKeyPair(const PemFile& certificates, const PemFile& key);

}  // namespace kvcompress
