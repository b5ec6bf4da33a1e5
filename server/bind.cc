#include "kvcompress/server/bind.h"

#include <fcntl.h>
#include <netdb.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"

namespace kvcompress {
namespace {

constexpr std::string_view kUnixScheme = "unix:";

std::string ErrorText(int error) { return absl::AsciiStrToLower(std::generic_category().message(error)); }

sockaddr_un UnixSocketAddress(const std::string& path) {
  sockaddr_un address{};
  static_assert(sizeof(address.sun_path) == kMaxUnixPathBytes + 1);
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, kMaxUnixPathBytes);
  return address;
}

// Calls `use` (bind or connect) for a new socket and the address of `path`; 0 or the error.
template <typename Use>
int WithUnixSocket(const std::string& path, Use use) {
  const sockaddr_un address = UnixSocketAddress(path);
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  const bool done = fd >= 0 && use(fd, reinterpret_cast<const sockaddr*>(&address), socklen_t{sizeof(address)}) == 0;
  const int error = done ? 0 : errno;
  if (fd >= 0) close(fd);
  return error;
}

std::string WhyNotBoundUnix(const std::string& path) {
  const int error = WithUnixSocket(path, bind);
  if (error == 0) unlink(path.c_str());
  return error == 0 ? "cannot listen" : ErrorText(error);
}

}  // namespace

bool IsUnixAddress(std::string_view address) { return address.starts_with(kUnixScheme); }

std::string UnixPath(std::string_view address) {
  const std::string_view path = address.substr(kUnixScheme.size());
  return std::string(path.starts_with("///") ? path.substr(2) : path);
}

Address SplitAddress(std::string_view address) {
  const size_t colon = address.rfind(':');
  std::string_view host = address.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  return {std::string(host), std::string(address.substr(colon + 1))};
}

std::string JoinAddress(std::string_view host, int port) {
  const bool ipv6 = host.find(':') != std::string_view::npos;
  std::string text = ipv6 ? "[" : "";
  text += host;
  if (ipv6) text += "]";
  return text + ":" + std::to_string(port);
}

bool IsLoopback(std::string_view address) {
  if (IsUnixAddress(address)) return true;
  const std::string host = SplitAddress(address).host;
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

std::string WhyNotBound(std::string_view address) {
  if (IsUnixAddress(address)) return WhyNotBoundUnix(UnixPath(address));
  const Address parts = SplitAddress(address);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(parts.host.c_str(), parts.port.c_str(), &hints, &found); error != 0) {
    return absl::AsciiStrToLower(gai_strerror(error));
  }
  std::string reason = "cannot listen";
  for (const addrinfo* info = found; info != nullptr; info = info->ai_next) {
    const int fd = socket(info->ai_family, info->ai_socktype | SOCK_CLOEXEC, info->ai_protocol);
    if (fd < 0 || bind(fd, info->ai_addr, info->ai_addrlen) != 0) {
      reason = ErrorText(errno);
    }
    if (fd >= 0) close(fd);
  }
  freeaddrinfo(found);
  return reason;
}

absl::Status RemoveStaleSocket(std::string_view address) {
  const std::string path = UnixPath(address);
  struct stat info;
  if (lstat(path.c_str(), &info) != 0) return absl::OkStatus();
  if (S_ISSOCK(info.st_mode)) {
    const int error = WithUnixSocket(path, connect);
    if (error == ECONNREFUSED && unlink(path.c_str()) == 0) return absl::OkStatus();
    if (error == EACCES) return absl::UnavailableError(absl::StrFormat("listen on %s: %s", address, ErrorText(error)));
  }
  return absl::UnavailableError(absl::StrFormat("listen on %s: %s", address, ErrorText(EADDRINUSE)));
}

ScopedMode::ScopedMode(mode_t mode) : old_umask_(umask(0777 & ~mode)) {}

ScopedMode::~ScopedMode() { umask(old_umask_); }

}  // namespace kvcompress
