#include "bench/transport/socket.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"

namespace kvcompress::bench {
namespace {

// Of one read. It stays in the cache of a core.
constexpr size_t kReadBytes = size_t{256} << 10;
constexpr std::string_view kUnixScheme = "unix:";

struct Name {
  sockaddr_storage storage = {};
  socklen_t size = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};

absl::StatusOr<Name> Parse(const std::string& address) {
  Name name;
  if (address.starts_with(kUnixScheme)) {
    sockaddr_un unix = {.sun_family = AF_UNIX, .sun_path = {}};
    const std::string path = address.substr(kUnixScheme.size());
    if (path.size() >= sizeof(unix.sun_path)) return absl::InvalidArgumentError("the path of a socket is too long");
    std::memcpy(unix.sun_path, path.data(), path.size());
    std::memcpy(&name.storage, &unix, sizeof(unix));
    name.size = sizeof(unix);
    return name;
  }
  sockaddr_in ip = {};
  ip.sin_family = AF_INET;
  const size_t colon = std::min(address.rfind(':'), address.size());
  uint32_t port = 0;
  const bool good = colon < address.size() && absl::SimpleAtoi(address.substr(colon + 1), &port) && port < 65536 &&
                    inet_pton(AF_INET, address.substr(0, colon).c_str(), &ip.sin_addr) == 1;
  if (!good) return absl::InvalidArgumentError(absl::StrFormat("\"%s\" is no address", address));
  ip.sin_port = htons(static_cast<uint16_t>(port));
  std::memcpy(&name.storage, &ip, sizeof(ip));
  name.size = sizeof(ip);
  return name;
}

absl::StatusOr<std::unique_ptr<Socket>> Open(const Name& name, int& fd) {
  fd = socket(name.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return absl::ErrnoToStatus(errno, "socket");
  return std::make_unique<Socket>(fd);
}

void SendAtOnce(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));  // an error for a unix socket, which needs none
}

void ServeConnection(const std::unique_ptr<Socket>& connection) {
  SocketHello hello;
  if (!connection->Receive(std::as_writable_bytes(std::span(&hello, 1))) || hello.tensor_bytes == 0) return;
  std::vector<std::byte> input(kReadBytes, std::byte{1});
  const std::vector<std::byte> output(kReadBytes, std::byte{1});
  const double ratio = static_cast<double>(hello.frame_bytes) / static_cast<double>(hello.tensor_bytes);
  uint64_t received = 0;
  uint64_t sent = 0;
  while (const size_t count = connection->ReceiveSome(input)) {
    received += count;
    const uint64_t target = static_cast<uint64_t>(static_cast<double>(received) * ratio + 0.5);
    while (sent < target) {
      const size_t bytes = static_cast<size_t>(std::min<uint64_t>(target - sent, output.size()));
      if (!connection->Send(ByteSpan(output).first(bytes))) return;
      sent += bytes;
    }
  }
}

}  // namespace

Socket::~Socket() { close(fd_); }

absl::StatusOr<std::unique_ptr<Socket>> Socket::Connect(const std::string& address) {
  KVC_ASSIGN_OR_RETURN(const Name name, Parse(address));
  int fd = -1;
  KVC_ASSIGN_OR_RETURN(std::unique_ptr<Socket> socket, Open(name, fd));
  if (connect(fd, name.get(), name.size) != 0) return absl::ErrnoToStatus(errno, "connect to " + address);
  SendAtOnce(fd);
  return socket;
}

absl::StatusOr<std::unique_ptr<Socket>> Socket::Listen(std::string& address) {
  KVC_ASSIGN_OR_RETURN(Name name, Parse(address));
  int fd = -1;
  KVC_ASSIGN_OR_RETURN(std::unique_ptr<Socket> socket, Open(name, fd));
  if (bind(fd, name.get(), name.size) != 0 || listen(fd, SOMAXCONN) != 0) {
    return absl::ErrnoToStatus(errno, "listen on " + address);
  }
  if (name.storage.ss_family == AF_INET) {
    sockaddr_in bound = {};
    socklen_t size = sizeof(bound);
    getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &size);
    address = absl::StrFormat("%s:%d", address.substr(0, address.rfind(':')), ntohs(bound.sin_port));
  }
  return socket;
}

std::unique_ptr<Socket> Socket::Accept() const {
  const int fd = accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC);
  if (fd < 0) return nullptr;
  SendAtOnce(fd);
  return std::make_unique<Socket>(fd);
}

bool Socket::Send(ByteSpan bytes) const {
  while (!bytes.empty()) {
    const ssize_t count = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (count <= 0) return false;
    bytes = bytes.subspan(static_cast<size_t>(count));
  }
  return true;
}

bool Socket::Receive(MutableByteSpan bytes) const {
  while (!bytes.empty()) {
    const size_t count = ReceiveSome(bytes);
    if (count == 0) return false;
    bytes = bytes.subspan(count);
  }
  return true;
}

size_t Socket::ReceiveSome(MutableByteSpan bytes) const {
  const ssize_t count = recv(fd_, bytes.data(), bytes.size(), 0);
  return count > 0 ? static_cast<size_t>(count) : 0;
}

void Socket::ShutDown() const { shutdown(fd_, SHUT_RDWR); }

void ServeSocket(const Socket& listener) {
  while (std::unique_ptr<Socket> connection = listener.Accept()) {
    std::thread([connection = std::move(connection)] { ServeConnection(connection); }).detach();
  }
}

}  // namespace kvcompress::bench
