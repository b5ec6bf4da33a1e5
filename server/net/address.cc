#include "server/net/address.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/stat.h>

#include "absl/strings/escaping.h"
#include "absl/strings/str_replace.h"

namespace kvcompress {
namespace {

constexpr std::string_view kUnixScheme = "unix:";

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

std::string ClientOfHost(std::string_view host) {
  std::string text(host.substr(0, host.find('%')));  // without the scope of IPv6
  in_addr ipv4;
  if (inet_pton(AF_INET, text.c_str(), &ipv4) == 1) return text;
  in6_addr ipv6{};
  if (inet_pton(AF_INET6, text.c_str(), &ipv6) != 1) return "";
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(ipv6.s6_addr), 8)) + "/64";
}

Address AddressOfSocket(const sockaddr_storage& address, socklen_t size) {
  char host[NI_MAXHOST];
  char port[NI_MAXSERV];
  if (address.ss_family == AF_UNIX || getnameinfo(reinterpret_cast<const sockaddr*>(&address), size, host, sizeof(host),
                                                  port, sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return {};
  }
  constexpr std::string_view kMapped = "::ffff:";
  std::string_view text = host;
  if (text.starts_with(kMapped)) text.remove_prefix(kMapped.size());
  return {std::string(text), port};
}

std::string PeerOf(const Address& address) {
  if (address.host.find(':') == std::string::npos) return "ipv4:" + address.host + ":" + address.port;
  return "ipv6:%5B" + absl::StrReplaceAll(address.host, {{"%", "%25"}}) + "%5D:" + address.port;
}

ino_t InodeOf(int fd) {
  struct stat info {};
  return fstat(fd, &info) == 0 && S_ISSOCK(info.st_mode) ? info.st_ino : 0;
}

std::string ClientOfPeer(std::string_view peer) {
  constexpr std::string_view kIpv4 = "ipv4:";
  constexpr std::string_view kIpv6 = "ipv6:%5B";  // and "%5D" after the host, or "%25" and its scope
  if (peer.starts_with(kIpv4)) return ClientOfHost(peer.substr(kIpv4.size(), peer.rfind(':') - kIpv4.size()));
  return peer.starts_with(kIpv6) ? ClientOfHost(peer.substr(kIpv6.size())) : "";
}

bool IsLoopback(std::string_view address) {
  if (IsUnixAddress(address)) return true;
  const std::string host = SplitAddress(address).host;
  in_addr ipv4;
  return host == "localhost" || host == "::1" ||
         (host.starts_with("127.") && inet_pton(AF_INET, host.c_str(), &ipv4) == 1);
}

}  // namespace kvcompress
