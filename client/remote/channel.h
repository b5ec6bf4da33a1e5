#pragma once

#include <grpcpp/channel.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "client/remote/remote_client.h"

namespace kvcompress {

// What gRPC is to connect to.
struct ChannelTarget {
  std::string uri;
  bool spread = false;  // calls go to all addresses in turn
  bool local = false;   // a unix socket, or addresses of this machine alone
  bool unix_socket = false;
};

// INVALID_ARGUMENT, with a sentence for people, for text that has none of the forms that RemoteOptions names.
absl::StatusOr<ChannelTarget> ParseAddress(std::string_view address);

std::shared_ptr<grpc::Channel> MakeChannel(const ChannelTarget& target, const RemoteOptions& options);

}  // namespace kvcompress
