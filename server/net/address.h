#pragma once

#include <string>
#include <string_view>

// Addresses to listen on: "HOST:PORT", "[HOST]:PORT" or "unix:PATH".
namespace kvcompress {

// Bytes of a unix socket's path.
inline constexpr size_t kMaxUnixPathBytes = 107;

bool IsUnixAddress(std::string_view address);
// Of a unix address, which gRPC also takes as "unix:///absolute/path".
std::string UnixPath(std::string_view address);

// HOST and PORT of an address that is no unix address.
struct Address {
  std::string host;
  std::string port;
};
Address SplitAddress(std::string_view address);
std::string JoinAddress(std::string_view host, int port);

// What tells the client at a numeric host from others: the host, of IPv6 its network of 64 bits, all of whose addresses
// one machine can have. Empty for what is no IP address.
std::string ClientOfHost(std::string_view host);
// Of a peer as gRPC writes it: "ipv4:10.0.0.1:2", "ipv6:%5B2001:db8::1%5D:2".
std::string ClientOfPeer(std::string_view peer);

// Whether only this machine can reach it.
bool IsLoopback(std::string_view address);

}  // namespace kvcompress
