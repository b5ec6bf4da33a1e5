#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/net/file_backed.h"

namespace kvcompress {

// What a listener with TLS shows to its clients, and which authorities it trusts for theirs. All texts are PEM.
struct TlsIdentity {
  std::string certificates;  // its own first, then the intermediate ones
  std::string key;
  std::string client_ca;  // empty: clients need no certificate
  absl::Time expires;     // the daemon's own certificate
};

// Makes an identity from the contents of two or three files: certificates, key, client CA. INVALID_ARGUMENT when gRPC
// could not use one of them, with a line that names its flag: gRPC itself does not say why.
absl::StatusOr<TlsIdentity> MakeTlsIdentity(const std::vector<std::string>& contents);

using TlsIdentityFiles = FileBacked<TlsIdentity>;
// The identity in the files at these paths. Null where `certificate` is empty: no TLS. With an empty `client_ca`
// clients need no certificate.
absl::StatusOr<std::unique_ptr<TlsIdentityFiles>> LoadTlsIdentity(const std::string& certificate,
                                                                  const std::string& key, const std::string& client_ca);

}  // namespace kvcompress
