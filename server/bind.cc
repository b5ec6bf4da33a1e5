#include "kvcompress/server/bind.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "absl/strings/ascii.h"

namespace kvcompress {

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
  const std::string host = SplitAddress(address).host;
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

std::string WhyNotBound(std::string_view address) {
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
      reason = absl::AsciiStrToLower(std::generic_category().message(errno));
    }
    if (fd >= 0) close(fd);
  }
  freeaddrinfo(found);
  return reason;
}

}  // namespace kvcompress
