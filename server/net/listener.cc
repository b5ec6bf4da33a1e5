#include "server/net/listener.h"

#include <fcntl.h>
#include <linux/tcp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <memory>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

namespace kvcompress {
namespace {

using AddressList = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

std::string ErrorText(int error) { return absl::AsciiStrToLower(std::generic_category().message(error)); }

sockaddr_un UnixSocketAddress(const std::string& path) {
  sockaddr_un address{};
  static_assert(sizeof(address.sun_path) == kMaxUnixPathBytes + 1);
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, kMaxUnixPathBytes);
  return address;
}

// 0 when somebody listens at the socket's file, else the error of connecting to it.
int ConnectUnix(const std::string& path) {
  const sockaddr_un address = UnixSocketAddress(path);
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  const bool done = fd >= 0 && connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  const int error = done ? 0 : errno;
  if (fd >= 0) close(fd);
  return error;
}

// Held while a socket replaces a stale one: of two daemons that find a stale socket, the second must not remove the new
// socket of the first. The system releases it with the process. A daemon that does not get it in a second goes on.
class FolderLock {
 public:
  explicit FolderLock(const std::string& path)
      : fd_(open((std::filesystem::path(path).parent_path() / ".").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    for (int i = 0; i < 100 && fd_ >= 0 && flock(fd_, LOCK_EX | LOCK_NB) != 0; ++i) {
      absl::SleepFor(absl::Milliseconds(10));
    }
  }
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;
  ~FolderLock() {
    if (fd_ >= 0) close(fd_);
  }

 private:
  const int fd_;
};

// Removes a socket that nobody answers on, as a daemon that was killed leaves it. 0 when there is no file then, or the
// error: somebody answers, or the file is not a socket.
int RemoveStaleSocket(const std::string& path) {
  struct stat info {};
  if (lstat(path.c_str(), &info) != 0) return 0;
  if (!S_ISSOCK(info.st_mode)) return EADDRINUSE;
  const int error = ConnectUnix(path);
  if (error == ECONNREFUSED && unlink(path.c_str()) == 0) return 0;
  return error == EACCES ? EACCES : EADDRINUSE;
}

// Binds a socket whose file never has more permissions than `mode`. 0 or the error.
int BindUnix(int fd, const std::string& path, mode_t mode) {
  const sockaddr_un address = UnixSocketAddress(path);
  const mode_t before = umask(0777 & ~mode);
  const int error = bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 ? 0 : errno;
  umask(before);
  return error;
}

// Empty for a host that is not known; `error` then says why.
AddressList Resolve(const std::string& host, const std::string& port, std::string& error) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int result = getaddrinfo(host.c_str(), port.c_str(), &hints, &found);
  if (result != 0) error = absl::AsciiStrToLower(gai_strerror(result));
  return {result == 0 ? found : nullptr, freeaddrinfo};
}

void SetOption(int fd, int level, int name, int value) { setsockopt(fd, level, name, &value, sizeof(value)); }

// The socket, or -1 and errno.
int ListenTcp(const addrinfo& info) {
  const int fd = socket(info.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, info.ai_protocol);
  if (fd < 0) return -1;
  SetOption(fd, SOL_SOCKET, SO_REUSEADDR, 1);
  if (info.ai_family == AF_INET6) SetOption(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
  // Connections inherit the options below.
  SetOption(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  constexpr int kUserTimeoutMs = 20'000;  // as long as the answer to a keepalive ping may take
  SetOption(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, kUserTimeoutMs);
  if (bind(fd, info.ai_addr, info.ai_addrlen) == 0 && listen(fd, SOMAXCONN) == 0) return fd;
  const int error = errno;
  close(fd);
  errno = error;
  return -1;
}

// The port in an address of either family.
in_port_t& PortField(sockaddr& address) {
  return address.sa_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                                       : reinterpret_cast<sockaddr_in&>(address).sin_port;
}

// 0 when there is no file.
ino_t InodeOf(const std::string& path) {
  struct stat info {};
  return lstat(path.c_str(), &info) == 0 ? info.st_ino : 0;
}

int PortOf(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  return ntohs(PortField(reinterpret_cast<sockaddr&>(address)));
}

}  // namespace

Listener::Listener(Listener&& other) noexcept
    : address_(std::move(other.address_)), sockets_(std::exchange(other.sockets_, {})), inode_(other.inode_) {}

Listener::~Listener() {
  const bool has_file = !sockets_.empty() && IsUnixAddress(address_);
  CloseAll();
  if (!has_file) return;
  const std::string path = UnixPath(address_);
  if (InodeOf(path) == inode_) unlink(path.c_str());
}

void Listener::CloseAll() {
  for (const int fd : sockets_) close(fd);
  sockets_.clear();
}

absl::StatusOr<Listener> Listener::Open(const std::string& address, mode_t mode) {
  Listener listener(address);
  std::string error;
  if (IsUnixAddress(address)) {
    const int result = listener.OpenUnix(mode);
    error = result == 0 ? "" : ErrorText(result);
  } else {
    error = listener.OpenTcp();
  }
  if (listener.sockets_.empty()) return absl::UnavailableError(absl::StrFormat("listen on %s: %s", address, error));
  return listener;
}

// Returns 0 or the error.
int Listener::OpenUnix(mode_t mode) {
  const std::string path = UnixPath(address_);
  const FolderLock lock(path);
  if (const int error = RemoveStaleSocket(path); error != 0) return error;
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return errno;
  int error = BindUnix(fd, path, mode);
  if (error == 0 && listen(fd, SOMAXCONN) != 0) error = errno;
  if (error != 0) {
    close(fd);
    return error;
  }
  sockets_.push_back(fd);
  inode_ = InodeOf(path);
  return 0;
}

// Returns the last error, which counts when there is no socket then.
std::string Listener::OpenTcp() {
  const Address parts = SplitAddress(address_);
  const bool wildcard = parts.host == "0.0.0.0" || parts.host == "::";
  std::vector<std::string> hosts = {parts.host};
  if (wildcard) hosts = {"::", "0.0.0.0"};
  std::string port = parts.port;
  std::string error = "cannot listen";
  for (const std::string& host : hosts) {
    const AddressList list = Resolve(host, port, error);
    for (const addrinfo* info = list.get(); info != nullptr; info = info->ai_next) {
      if (wildcard && !sockets_.empty()) break;
      PortField(*info->ai_addr) = htons(static_cast<in_port_t>(std::stoi(port)));
      const int fd = ListenTcp(*info);
      if (fd < 0) {
        const int why = errno;
        error = ErrorText(why);
        // Some clients of that name would reach whoever uses the address.
        if (why == EADDRINUSE && !wildcard) return CloseAll(), error;
        continue;
      }
      sockets_.push_back(fd);
      port = std::to_string(PortOf(fd));  // the one that the system has chosen is for all
    }
  }
  if (!sockets_.empty()) address_ = JoinAddress(parts.host, std::stoi(port));
  return error;
}

bool AcceptWaiting(int socket, size_t most, const std::function<void(int fd, const Address& from)>& take) {
  for (size_t i = 0; i < most; ++i) {
    sockaddr_storage address{};
    socklen_t size = sizeof(address);
    const int fd = accept4(socket, reinterpret_cast<sockaddr*>(&address), &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
      take(fd, AddressOfSocket(address, size));
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      return false;
    } else if (errno == EAGAIN || errno == EINVAL || errno == EBADF) {
      return true;
    }  // else a connection that broke before it was accepted
  }
  return true;
}

}  // namespace kvcompress
