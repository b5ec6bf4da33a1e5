#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/net/address.h"

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

// Gives `take` up to `most` of the connections that wait at a listener's socket, non-blocking, each with the numeric
// address of its other side (empty for a unix socket). False when the process has no descriptors left for them.
bool AcceptWaiting(int socket, size_t most, const std::function<void(int fd, const Address& from)>& take);

}  // namespace kvcompress
