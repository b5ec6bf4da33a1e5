#pragma once

#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "client/remote/remote_client.h"

namespace kvcompress {

// What keeps the client from connecting and will keep it the next time as well, in plain words, by the `message` that
// gRPC has for it; empty for any other fault. gRPC only says that a certificate could not be verified: a handshake of
// our own, of two seconds at most and until `deadline`, finds out why.
std::string LastingFault(std::string_view message, const RemoteOptions& options, absl::Time deadline);

}  // namespace kvcompress
