#pragma once

#include <sys/socket.h>
#include <sys/types.h>

#include <string>
#include <string_view>

// Addresses to listen on: "HOST:PORT", "[HOST]:PORT" or "unix:PATH".
namespace kvcompress {

// Most bytes of a unix socket's path.
inline constexpr size_t kMaxUnixPathBytes = 107;

bool IsUnixAddress(std::string_view address);
// The path of a unix address, which gRPC also writes as "unix:///absolute/path".
std::string UnixPath(std::string_view address);

// The parts of "HOST:PORT" or "[HOST]:PORT".
struct Address {
  std::string host;
  std::string port;
};
Address SplitAddress(std::string_view address);
std::string JoinAddress(std::string_view host, int port);

// The client at a numeric host, as limits of single clients tell it from others: an IPv4 address, or the /64 network of
// an IPv6 address, since one machine can have all of its addresses. Empty for a host that is not an IP address.
std::string ClientOfHost(std::string_view host);
// The numeric address of the other side of a socket; empty for a unix socket.
Address AddressOfSocket(const sockaddr_storage& address, socklen_t size);
// The client of a peer as gRPC writes it: "ipv4:10.0.0.1:2", "ipv6:%5B2001:db8::1%5D:2".
std::string ClientOfPeer(std::string_view peer);
// A numeric address as gRPC writes peers.
std::string PeerOf(const Address& address);

// The inode of a socket, which its descriptor's number may outlive; 0 when `fd` is not open, or no socket.
ino_t InodeOf(int fd);

// Whether only this machine can reach the address.
bool IsLoopback(std::string_view address);

}  // namespace kvcompress
