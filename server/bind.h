#pragma once

#include <string>
#include <string_view>

namespace kvcompress {

// HOST and PORT of "HOST:PORT" or "[HOST]:PORT".
struct Address {
  std::string host;
  std::string port;
};
Address SplitAddress(std::string_view address);
std::string JoinAddress(std::string_view host, int port);

// Whether only this machine can reach it.
bool IsLoopback(std::string_view address);

// Why nothing can listen on `address`, in the system's words: "address already in use".
std::string WhyNotBound(std::string_view address);

}  // namespace kvcompress
