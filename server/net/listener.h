#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace kvcompress {

// Non-blocking sockets that listen at one address: one socket for each IP address that it stands for ("localhost"). A
// wildcard listens for IPv6 and IPv4 where the system has both. The destructor closes the sockets and removes a unix
// socket's file.
class Listener {
 public:
  // UNAVAILABLE "listen on ADDRESS: WHY", in the system's words, also when one of several IP addresses is in use. A
  // unix socket has the permissions `mode`. It replaces a socket that nobody answers on, and no other file.
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
  ino_t inode_ = 0;  // of a unix socket's file, which another daemon may have replaced
};

}  // namespace kvcompress
