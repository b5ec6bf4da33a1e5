#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/net/file_backed.h"

namespace kvcompress {

// What a listener with TLS shows to its clients, and whom it believes theirs; PEM.
struct TlsIdentity {
  std::string certificates;  // its own first, then the intermediate ones
  std::string key;
  std::string client_ca;  // empty: clients need no certificate
  absl::Time expires;     // the daemon's own certificate
};

// Of the contents of the certificate's, the key's and, where there is one, the client CA's file. INVALID_ARGUMENT with
// a line that says which of them is wrong, when gRPC could not use them: it has no words of its own.
absl::StatusOr<TlsIdentity> MakeTlsIdentity(const std::vector<std::string>& contents);

// Of the files at these paths; null where `certificate` is empty: no TLS. An empty `client_ca`: clients need no
// certificate.
using TlsIdentityFiles = FileBacked<TlsIdentity>;
absl::StatusOr<std::unique_ptr<TlsIdentityFiles>> LoadTlsIdentity(const std::string& certificate,
                                                                  const std::string& key, const std::string& client_ca);

}  // namespace kvcompress
