#pragma once

#include <cstdint>

namespace kvcompress {

// What a client may send on a connection before the daemon has read any of it. HTTP/2's own 65,535 bytes are 52 too few
// for a tensor of 64 KiB with its header, whose call would wait for a round trip. And twice that much, with some to
// spare: when more than half of it is used up, gRPC says so in a message of its own.
inline constexpr uint32_t kReceiveWindowBytes = 192 << 10;

// Lets this process's connections whose channel argument GRPC_ARG_HTTP2_BDP_PROBE is 1 have this window for good, where
// they would have one that grows. False: with this version of gRPC it cannot be. Before the first connection.
bool FixReceiveWindows();

}  // namespace kvcompress
