#pragma once

#include <openssl/evp.h>
#include <openssl/x509.h>

#include <memory>
#include <string>
#include <vector>

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

// Empty without any, and when one of them is damaged.
std::vector<Certificate> ParseCertificates(const std::string& pem);

// Null without one; a key that is encrypted is none.
PrivateKey ParsePrivateKey(const std::string& pem);

bool IsKeyOf(const Certificate& certificate, const PrivateKey& key);

}  // namespace kvcompress
