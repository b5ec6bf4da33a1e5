#pragma once

#include <google/protobuf/message_lite.h>
#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/support/byte_buffer.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "core/base/slice.h"

// Messages that carry a payload, read and written around it: the payload is never copied into or out of a protobuf
// message. On the wire they are ordinary protobuf.
namespace kvcompress {

// Most bytes of a tensor or frame in one message. gRPC's default receive limit is 4 MiB; larger ones gain nothing.
inline constexpr size_t kMaxPayloadBytes = size_t{1} << 20;

// A message whose last field is a payload.
struct SplitMessage {
  std::string head;  // the fields before the payload, serialized: empty, or a message of its own
  std::vector<Slice> payload;
};

// Takes `message` apart if its last field is `field`, of type bytes, and the fields before it all have a length and are
// small together. The slices keep the memory that gRPC has received into. Empty for any other message, which has to be
// parsed.
std::optional<SplitMessage> SplitAtPayload(const grpc::ByteBuffer& message, uint32_t field);

// The payload of a message that has no other field; empty for any other message.
std::optional<std::vector<Slice>> PayloadOf(const grpc::ByteBuffer& message, uint32_t field);

// A message of the fields of `head`, if there is one, and, after them, the field `field` with the bytes of `payload`.
// gRPC holds the slices until they are sent.
grpc::ByteBuffer PayloadMessage(uint32_t field, const std::vector<Slice>& payload,
                                const google::protobuf::MessageLite* head = nullptr);

// Most bytes of a message besides its payload: a header with a profile.
inline constexpr size_t kMaxHeadBytes = size_t{80} << 10;

// The bytes of a message that are not those of a field `field`, of type bytes.
size_t BytesBesides(const grpc::ByteBuffer& message, uint32_t field);

// Reads a message that carries no payload; false when the bytes are not one.
template <typename Message>
bool ParseMessage(const grpc::ByteBuffer& buffer, Message& message) {
  grpc::ByteBuffer copy = buffer;  // Deserialize clears what it is given
  return grpc::SerializationTraits<Message>::Deserialize(&copy, &message).ok();
}

// The same for what a client sends. A parser may make thirty times as many bytes of it, so a message that has more than
// `max_bytes` besides its field `payload` (0: it has none) is INVALID_ARGUMENT too.
template <typename Message>
absl::Status ParseRequest(const grpc::ByteBuffer& buffer, size_t max_bytes, uint32_t payload, Message& message) {
  if (buffer.Length() > max_bytes && BytesBesides(buffer, payload) > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a message above the limit of ", max_bytes, " bytes", payload == 0 ? "" : " besides its payload"));
  }
  return ParseMessage(buffer, message) ? absl::OkStatus() : absl::InvalidArgumentError("message cannot be parsed");
}

// INTERNAL for a message that is too large for protobuf.
template <typename Message>
absl::Status SerializeMessage(const Message& message, grpc::ByteBuffer& buffer) {
  bool own_buffer = false;
  buffer.Clear();
  const bool ok = grpc::SerializationTraits<Message>::Serialize(message, &buffer, &own_buffer).ok();
  return ok ? absl::OkStatus() : absl::InternalError("message cannot be serialized");
}

}  // namespace kvcompress
