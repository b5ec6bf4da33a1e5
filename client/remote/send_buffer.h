#pragma once

#include <grpcpp/support/channel_arguments.h>

namespace kvcompress {

// Lets the channel's unix sockets hold 1 MiB where the system lets them, in place of its 208 KiB: the daemon reads more
// of a message at once, and gRPC waits less often for the socket, for which it keeps a thread more. Other sockets stay
// as they are, and so do all with a version of gRPC that has not been looked at.
void EnlargeSendBuffers(grpc::ChannelArguments& arguments);

}  // namespace kvcompress
