#pragma once

#include <grpcpp/security/server_credentials.h>

#include <functional>
#include <memory>

#include "server/net/tls_identity.h"
#include "server/net/tokens.h"

namespace kvcompress {

// Decides whether a call may come in, before any service sees it; no method gets around it. Health checks always may:
// whoever makes them often cannot show a token, and learns a single bit.
class Gate {
 public:
  // With null `tokens` every call may come in. They must outlive the server. `on_refusal` is called for each refusal.
  Gate(TokenFile* tokens, std::function<void()> on_refusal) : tokens_(tokens), on_refusal_(std::move(on_refusal)) {}

  bool is_open() const { return tokens_ == nullptr; }
  // `path` is the call's method, `count` how often it has the metadata `authorization`. UNAUTHENTICATED with a
  // sentence.
  absl::Status Check(std::string_view path, std::string_view authorization, size_t count) const;

 private:
  TokenFile* const tokens_;
  const std::function<void()> on_refusal_;
};

// Credentials of one listener: plaintext where `identity` is null, else TLS 1.2 or later with the latest identity for
// each new connection. Clients must show a certificate where the identity has a client CA. `identity` and `gate` must
// outlive the server.
std::shared_ptr<grpc::ServerCredentials> MakeListenerCredentials(TlsIdentityFiles* identity, const Gate& gate);

}  // namespace kvcompress
