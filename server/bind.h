#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>

#include "absl/status/status.h"

// Addresses to listen on: "HOST:PORT", "[HOST]:PORT" or "unix:PATH".
namespace kvcompress {

// Bytes of a unix socket's path.
inline constexpr size_t kMaxUnixPathBytes = 107;

bool IsUnixAddress(std::string_view address);
// Of a unix address, which gRPC also takes as "unix:///absolute/path".
std::string UnixPath(std::string_view address);

// HOST and PORT of an address that is no unix address.
struct Address {
  std::string host;
  std::string port;
};
Address SplitAddress(std::string_view address);
std::string JoinAddress(std::string_view host, int port);

// Whether only this machine can reach it.
bool IsLoopback(std::string_view address);

// Why nothing can listen on `address`, in the system's words: "address already in use".
std::string WhyNotBound(std::string_view address);

// Makes room for a listener at a unix address: gRPC removes whatever socket it finds there. Removes a socket that
// nobody answers on, which a daemon that was killed leaves behind; UNAVAILABLE "address already in use" when somebody
// does, and for any other kind of file.
absl::Status RemoveStaleSocket(std::string_view address);

// While it lives, sockets and files that this process makes have no more permissions than `mode`. Of one thread.
class ScopedMode {
 public:
  explicit ScopedMode(mode_t mode);
  ScopedMode(const ScopedMode&) = delete;
  ScopedMode& operator=(const ScopedMode&) = delete;
  ~ScopedMode();

 private:
  const mode_t old_umask_;
};

}  // namespace kvcompress
