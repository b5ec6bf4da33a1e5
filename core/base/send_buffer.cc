#include "core/base/send_buffer.h"

#include <sys/socket.h>

namespace kvcompress {
namespace {

int OptionOf(int fd, int option) {
  int value = 0;
  socklen_t size = sizeof(value);
  return getsockopt(fd, SOL_SOCKET, option, &value, &size) == 0 ? value : 0;
}

}  // namespace

void EnlargeSendBuffer(int fd) {
  const int half = 512 << 10;  // Linux doubles what it is asked for, and reports it so
  if (OptionOf(fd, SO_DOMAIN) != AF_UNIX || OptionOf(fd, SO_SNDBUF) >= 2 * half) return;
  setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &half, sizeof(half));
}

}  // namespace kvcompress
