#include "bench/transport/rpc.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"
#include "proto/wire/grpc/message.h"

namespace kvcompress::bench {

absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  auto channel = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  if (!channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(10))) {
    return absl::UnavailableError(absl::StrFormat("no connection to %s", address));
  }
  return channel;
}

absl::StatusOr<std::vector<std::shared_ptr<grpc::Channel>>> ConnectAll(const Workload& workload,
                                                                       const std::string& address) {
  std::vector<std::shared_ptr<grpc::Channel>> channels;
  while (channels.size() < std::min(workload.streams, kMaxConnections)) {
    KVC_ASSIGN_OR_RETURN(std::shared_ptr<grpc::Channel> channel, Connect(address));
    channels.push_back(std::move(channel));
  }
  return channels;
}

void Keep(const grpc::Status& status, absl::Status& result) {
  if (status.error_code() == grpc::StatusCode::CANCELLED) return;
  result =
      absl::InternalError(absl::StrFormat("a stream ended early: %d %s", status.error_code(), status.error_message()));
}

void Describe(const Workload& workload, grpc::ClientContext& context) {
  context.AddMetadata(kTensorBytesKey, std::to_string(workload.tensor_bytes));
  context.AddMetadata(kFrameBytesKey, std::to_string(workload.frame_bytes));
}

v1::CompressHeader HeaderOf(const Workload& workload) {
  v1::CompressHeader header;
  header.mutable_tensor()->set_name(workload.tensor.name);
  header.mutable_tensor()->set_dtype(static_cast<v1::DType>(workload.tensor.dtype));
  header.mutable_tensor()->mutable_shape()->Add(workload.tensor.shape.begin(), workload.tensor.shape.end());
  header.set_codec(kCodec);
  return header;
}

RequestMessages::RequestMessages(const Workload& workload)
    : per_tensor_(static_cast<size_t>(workload.tensor_bytes / workload.message_bytes)) {
  v1::CompressRequest request;
  *request.mutable_header() = HeaderOf(workload);
  SerializeMessage(request, header_).IgnoreError();
  for (size_t at = 0; at < kBufferBytes; at += workload.message_bytes) {
    data_.push_back(PayloadMessage(v1::CompressRequest::kDataFieldNumber,
                                   {{.bytes = Values().subspan(at, workload.message_bytes), .owner = nullptr}}));
  }
}

uint64_t ByteCount(const std::vector<Slice>& payload) {
  uint64_t bytes = 0;
  for (const Slice& slice : payload) bytes += slice.bytes.size();
  return bytes;
}

std::optional<uint64_t> FrameBytes(const ByteBuffer& response) {
  const auto payload = PayloadOf(response, v1::CompressResponse::kFrameFieldNumber);
  return payload ? std::optional(ByteCount(*payload)) : std::nullopt;
}

}  // namespace kvcompress::bench
