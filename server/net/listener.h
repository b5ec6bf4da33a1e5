#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace kvcompress {

// Sockets that listen, without blocking, at one address, which can be several to the system ("localhost"), of which
// none is in use; closed, and the file of a unix socket removed, at the end. A wildcard listens for IPv6 and IPv4
// alike, where the system has both.
class Listener {
 public:
  // UNAVAILABLE "listen on ADDRESS: " and why, in the system's words. A unix socket has the permissions `mode`, and
  // takes the place of one that nobody answers on; any other file there stays.
  static absl::StatusOr<Listener> Open(const std::string& address, mode_t mode);

  Listener(Listener&& other) noexcept;
  Listener& operator=(Listener&&) = delete;
  ~Listener();

  const std::vector<int>& sockets() const { return sockets_; }
  const std::string& address() const { return address_; }  // with the port that the system chose

 private:
  explicit Listener(std::string address) : address_(std::move(address)) {}
  int OpenUnix(mode_t mode);
  std::string OpenTcp();
  void CloseAll();

  std::string address_;
  std::vector<int> sockets_;
  ino_t inode_ = 0;  // of a unix socket's file: another daemon's may have taken its place
};

}  // namespace kvcompress
