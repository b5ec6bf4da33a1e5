#include "proto/wire/grpc/message.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpc/slice.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <algorithm>

namespace kvcompress {
namespace {

using GrpcSlices = std::vector<grpc::Slice>;

constexpr uint32_t kLengthDelimited = 2;
// Of tags and lengths: parsers of protobuf take no longer ones.
constexpr size_t kMaxVarintBytes = 5;

ByteSpan BytesOf(const grpc::Slice& slice) { return {reinterpret_cast<const std::byte*>(slice.begin()), slice.size()}; }

// Reads a message from its front, wherever its slices end.
class MessageReader {
 public:
  explicit MessageReader(const GrpcSlices& slices) : slices_(slices) {}

  // The next varint; empty when there is none that a field's tag or length could be.
  std::optional<uint64_t> Varint() {
    uint64_t value = 0;
    for (size_t i = 0; i < kMaxVarintBytes; ++i) {
      const ByteSpan rest = Rest();
      if (rest.empty()) return std::nullopt;
      const auto byte = std::to_integer<uint8_t>(rest[0]);
      Skip(1);
      value |= uint64_t{byte & 0x7fu} << (7 * i);
      if (byte < 0x80) return value;
    }
    return std::nullopt;
  }

  // What is left of the slice at hand; empty at the end of the message.
  ByteSpan Rest() {
    while (index_ < slices_.size() && at_ == slices_[index_].size()) {
      ++index_;
      at_ = 0;
    }
    return index_ < slices_.size() ? BytesOf(slices_[index_]).subspan(at_) : ByteSpan();
  }

  // `count` bytes of Rest().
  void Skip(size_t count) {
    at_ += count;
    position_ += count;
  }

  void Append(size_t count, std::string& to) {
    while (count > 0) {
      const ByteSpan rest = Rest();
      const size_t take = std::min(count, rest.size());
      if (take == 0) return;
      to += AsText(rest.first(take));
      Skip(take);
      count -= take;
    }
  }

  size_t position() const { return position_; }  // in the message

 private:
  const GrpcSlices& slices_;
  size_t index_ = 0;
  size_t at_ = 0;  // in slices_[index_]
  size_t position_ = 0;
};

size_t WriteVarint(uint64_t value, uint8_t* to) {
  size_t size = 0;
  for (; value >= 0x80; value >>= 7) to[size++] = static_cast<uint8_t>(value | 0x80);
  to[size++] = static_cast<uint8_t>(value);
  return size;
}

// A field's tag and the length of what follows.
size_t WritePrefix(uint64_t tag, uint64_t length, uint8_t* to) {
  const size_t size = WriteVarint(tag, to);
  return size + WriteVarint(length, to + size);
}

grpc::Slice Share(const Slice& slice) {
  using Owner = std::shared_ptr<const void>;
  // gRPC reads the bytes only; its API has no const.
  return {const_cast<std::byte*>(slice.bytes.data()), slice.bytes.size(),
          [](void* owner) { delete static_cast<Owner*>(owner); }, new Owner(slice.owner)};
}

}  // namespace

std::optional<SplitMessage> SplitAtPayload(const grpc::ByteBuffer& message, uint32_t field) {
  auto dumped = std::make_shared<GrpcSlices>();
  if (!message.Dump(dumped.get()).ok()) return std::nullopt;
  const size_t size = message.Length();
  SplitMessage split;
  MessageReader reader(*dumped);
  uint64_t length = 0;
  while (true) {
    const std::optional<uint64_t> tag = reader.Varint();
    const std::optional<uint64_t> value = reader.Varint();
    if (!tag || !value || (*tag & 7) != kLengthDelimited || *value > size - reader.position()) return std::nullopt;
    length = *value;
    if (*tag == uint64_t{field << 3 | kLengthDelimited}) break;
    if (split.head.size() + length > kMaxHeadBytes) return std::nullopt;
    uint8_t prefix[2 * kMaxVarintBytes];
    split.head.append(reinterpret_cast<const char*>(prefix), WritePrefix(*tag, length, prefix));
    reader.Append(length, split.head);
  }
  if (length != size - reader.position()) return std::nullopt;
  for (ByteSpan rest = reader.Rest(); !rest.empty(); rest = reader.Rest()) {
    split.payload.push_back({rest, dumped});
    reader.Skip(rest.size());
  }
  return split;
}

std::optional<std::vector<Slice>> PayloadOf(const grpc::ByteBuffer& message, uint32_t field) {
  std::optional<SplitMessage> split = SplitAtPayload(message, field);
  if (!split || !split->head.empty()) return std::nullopt;
  return std::move(split->payload);
}

size_t BytesBesides(const grpc::ByteBuffer& message, uint32_t field) {
  using google::protobuf::internal::WireFormatLite;
  grpc::ByteBuffer copy = message;  // the reader clears what it is given
  grpc::ProtoBufferReader bytes(&copy);
  google::protobuf::io::CodedInputStream input(&bytes);
  size_t payload = 0;
  while (const uint32_t tag = input.ReadTag()) {
    uint32_t length = 0;
    if (tag != WireFormatLite::MakeTag(static_cast<int>(field), WireFormatLite::WIRETYPE_LENGTH_DELIMITED)) {
      if (!WireFormatLite::SkipField(&input, tag)) break;
    } else if (input.ReadVarint32(&length) && input.Skip(static_cast<int>(length))) {
      payload += length;
    } else {
      break;
    }
  }
  return message.Length() - payload;
}

grpc::ByteBuffer PayloadMessage(uint32_t field, const std::vector<Slice>& payload,
                                const google::protobuf::MessageLite* head) {
  size_t length = 0;
  for (const Slice& slice : payload) length += slice.bytes.size();
  uint8_t prefix[2 * kMaxVarintBytes];
  const size_t prefix_bytes = WritePrefix(field << 3 | kLengthDelimited, length, prefix);
  const size_t head_bytes = head != nullptr ? head->ByteSizeLong() : 0;
  grpc_slice front = grpc_slice_malloc(head_bytes + prefix_bytes);
  uint8_t* at = GRPC_SLICE_START_PTR(front);
  if (head != nullptr) at = head->SerializeWithCachedSizesToArray(at);
  std::copy_n(prefix, prefix_bytes, at);
  GrpcSlices slices;
  slices.reserve(1 + payload.size());
  slices.emplace_back(front, grpc::Slice::STEAL_REF);
  for (const Slice& slice : payload) slices.push_back(Share(slice));
  return {slices.data(), slices.size()};
}

}  // namespace kvcompress
