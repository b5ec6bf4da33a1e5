#pragma once

#include <grpcpp/support/channel_arguments.h>

namespace kvcompress {

// Enlarges the send buffers of the channel's unix sockets (core/base/send_buffer.h), so that the daemon reads more of a
// message at once. All stay as they are with a version of gRPC that has not been looked at.
void EnlargeSendBuffers(grpc::ChannelArguments& arguments);

}  // namespace kvcompress
