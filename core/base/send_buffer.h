#pragma once

namespace kvcompress {

// Lets the unix socket `fd` hold 1 MiB of what is sent, as far as the system lets it, in place of its own size, 208
// KiB: a whole message, or more of one, of which gRPC would send a part, wait until it is read, and keep a thread more
// to watch the socket. A socket that holds as much already stays as it is, and so does one of another kind.
void EnlargeSendBuffer(int fd);

}  // namespace kvcompress
