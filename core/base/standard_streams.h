#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

namespace kvcompress {

// Gives those of the descriptors 0 to 2 that the process was started without to /dev/null: the next file or socket
// would get such a number, and with it what is written to standard error. Writing to a standard output that was closed
// stays an error. gRPC opens descriptors when its library is initialized: a program calls this before that, from its
// .preinit_array.
inline void FillStandardStreams() {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
    if (fcntl(fd, F_GETFD) != -1 || errno != EBADF) continue;
    // It gets the lowest number that is free: this one.
    [[maybe_unused]] const int opened = open("/dev/null", fd == STDERR_FILENO ? O_WRONLY : O_RDONLY);
  }
}

}  // namespace kvcompress
