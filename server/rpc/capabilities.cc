#include "server/rpc/capabilities.h"

#include <grpc/grpc.h>

#include <algorithm>

#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"
#include "core/codec/named_chains.h"
#include "core/codec/registry.h"
#include "core/frame_plan.h"
#include "proto/wire/direction.h"
#include "proto/wire/grpc/message.h"
#include "proto/wire/headers/headers.h"
#include "server/net/address.h"
#include "server/telemetry/metrics.h"

namespace kvcompress {
namespace {

constexpr int kMaxHeaders = 4096;

void AddCodecs(v1::CapabilitiesResponse& response) {
  for (const CodecRow* row : AllCodecs()) {
    v1::CodecInfo& codec = *response.add_codecs();
    codec.set_name(std::string(row->name));
    codec.set_example(std::string(row->examples.front()));
    codec.set_stage(std::string(StageKindName(row->kind())));
  }
}

void AddNamedChains(v1::CapabilitiesResponse& response) {
  for (const NamedChain& named : AllNamedChains()) {
    v1::NamedChain& message = *response.add_named_chains();
    message.set_name(std::string(named.name));
    message.set_codec(std::string(named.chain));
    message.set_purpose(std::string(named.purpose));
    message.set_first_layers(static_cast<uint32_t>(named.first_layers));
    message.set_first_codec(std::string(named.first_chain));
    message.set_value_codec(std::string(named.value_chain));
  }
}

void AddTransports(const Options& options, v1::CapabilitiesResponse& response) {
  const auto& listen = options.listen;
  if (!std::ranges::all_of(listen, IsUnixAddress)) response.add_transports(v1::TRANSPORT_TCP);
  if (std::ranges::any_of(listen, IsUnixAddress)) response.add_transports(v1::TRANSPORT_UNIX);
  if (options.shared_memory_prefix.empty()) return;
  response.add_transports(v1::TRANSPORT_SHARED_MEMORY);
  response.set_shared_memory_prefix(options.shared_memory_prefix);
  response.set_foreign_memory_prefix(options.foreign_memory_prefix);
}

absl::StatusOr<uint64_t> FrameBound(const Options& options, const v1::CompressHeader& header,
                                    CompressHeaders& headers) {
  KVC_ASSIGN_OR_RETURN(CompressHeaders::Job job, headers.Read(header, options.default_codec));
  KVC_ASSIGN_OR_RETURN(const FramePlan plan,
                       PlanFrame(std::move(job.tensor), job.codec, {.max_tensor_bytes = options.max_tensor_bytes}));
  return plan.MaxFrameBytes();
}

}  // namespace

absl::StatusOr<v1::CapabilitiesResponse> DescribeCapabilities(const Options& options, ArtifactStore* artifacts,
                                                              const v1::CapabilitiesRequest& request) {
  if (request.headers_size() > kMaxHeaders) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d headers in one request, the limit is %d", request.headers_size(), kMaxHeaders));
  }
  v1::CapabilitiesResponse response;
  CompressHeaders headers;
  for (const v1::CompressHeader& header : request.headers()) {
    KVC_ASSIGN_OR_RETURN(const uint64_t bytes, FrameBound(options, header, headers));
    response.add_max_frame_bytes(bytes);
  }
  ToMessage(ThisBuild(), *response.mutable_build());
  AddCodecs(response);
  AddNamedChains(response);
  response.set_default_codec(options.default_codec);
  for (const DType dtype : kAllDTypes) {
    response.add_dtypes(static_cast<v1::DType>(dtype));
  }
  v1::Limits& limits = *response.mutable_limits();
  limits.set_max_tensor_bytes(options.max_tensor_bytes);
  limits.set_max_rank(kMaxRank);
  limits.set_max_name_bytes(kMaxNameBytes);
  limits.set_max_message_bytes(GRPC_DEFAULT_MAX_RECV_MESSAGE_LENGTH);
  limits.set_max_streams(options.max_streams);
  limits.set_memory_budget_bytes(options.memory_budget);
  limits.set_max_batch_tensors(kMaxBatchTensors);
  response.set_recommended_message_bytes(kMaxPayloadBytes);
  AddTransports(options, response);
  if (artifacts != nullptr) {
    for (const ArtifactId& id : artifacts->ids()) response.add_artifacts(id);
  }
  return response;
}

}  // namespace kvcompress
