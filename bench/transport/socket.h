#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/bytes.h"

// Blocking stream sockets, TCP and unix, by the addresses that gRPC has for them: HOST:PORT (IPv4) and unix:PATH.
namespace kvcompress::bench {

class Socket {
 public:
  explicit Socket(int fd) : fd_(fd) {}
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  ~Socket();

  static absl::StatusOr<std::unique_ptr<Socket>> Connect(const std::string& address);
  // `address` becomes what it is bound to.
  static absl::StatusOr<std::unique_ptr<Socket>> Listen(std::string& address);

  // Null when the socket was shut down.
  std::unique_ptr<Socket> Accept() const;
  // False at the end of the connection.
  bool Send(ByteSpan bytes) const;
  bool Receive(MutableByteSpan bytes) const;
  // As many bytes as are there, at least one; 0 at the end.
  size_t ReceiveSome(MutableByteSpan bytes) const;
  // Wakes all who send and receive.
  void ShutDown() const;

 private:
  const int fd_;
};

// The first bytes of a connection: how many bytes come back for how many.
struct SocketHello {
  uint64_t tensor_bytes = 0;
  uint64_t frame_bytes = 0;
};

// Answers what comes on the connections of `listener` with as many bytes as a daemon would, for as long as it accepts.
void ServeSocket(const Socket& listener);

}  // namespace kvcompress::bench
