#include "kvcompress/rpc/message.h"

#include <algorithm>

namespace kvcompress {
namespace {

using GrpcSlices = std::vector<grpc::Slice>;

constexpr uint32_t kLengthDelimited = 2;
constexpr size_t kMaxVarintBytes = 10;

ByteSpan BytesOf(const grpc::Slice& slice) { return {reinterpret_cast<const std::byte*>(slice.begin()), slice.size()}; }

// Reads the first bytes of a message, wherever its slices end.
class PrefixReader {
 public:
  explicit PrefixReader(const GrpcSlices& slices) : slices_(slices) {}

  // The next varint; empty when there is none that a field's tag or length could be.
  std::optional<uint64_t> Varint() {
    uint64_t value = 0;
    for (size_t i = 0; i < kMaxVarintBytes; ++i) {
      while (index_ < slices_.size() && at_ == slices_[index_].size()) {
        ++index_;
        at_ = 0;
      }
      if (index_ == slices_.size()) return std::nullopt;
      const uint8_t byte = slices_[index_].begin()[at_++];
      ++bytes_read_;
      value |= uint64_t{byte & 0x7fu} << (7 * i);
      if (byte < 0x80) return value;
    }
    return std::nullopt;
  }

  size_t index() const { return index_; }  // of the slice that comes next
  size_t at() const { return at_; }        // in that slice
  size_t bytes_read() const { return bytes_read_; }

 private:
  const GrpcSlices& slices_;
  size_t index_ = 0;
  size_t at_ = 0;
  size_t bytes_read_ = 0;
};

size_t WriteVarint(uint64_t value, uint8_t* to) {
  size_t size = 0;
  for (; value >= 0x80; value >>= 7) to[size++] = static_cast<uint8_t>(value | 0x80);
  to[size++] = static_cast<uint8_t>(value);
  return size;
}

grpc::Slice Share(const Slice& slice) {
  using Owner = std::shared_ptr<const void>;
  // gRPC reads the bytes only; its API has no const.
  return {const_cast<std::byte*>(slice.bytes.data()), slice.bytes.size(),
          [](void* owner) { delete static_cast<Owner*>(owner); }, new Owner(slice.owner)};
}

}  // namespace

std::optional<std::vector<Slice>> PayloadOf(const grpc::ByteBuffer& message, uint32_t field) {
  auto dumped = std::make_shared<GrpcSlices>();
  if (!message.Dump(dumped.get()).ok()) return std::nullopt;
  PrefixReader prefix(*dumped);
  if (prefix.Varint() != uint64_t{field << 3 | kLengthDelimited}) return std::nullopt;
  const std::optional<uint64_t> length = prefix.Varint();
  if (!length || *length != message.Length() - prefix.bytes_read()) return std::nullopt;
  std::vector<Slice> payload;
  payload.reserve(dumped->size() - std::min(dumped->size(), prefix.index()));
  for (size_t i = prefix.index(); i < dumped->size(); ++i) {
    const ByteSpan bytes = BytesOf((*dumped)[i]).subspan(i == prefix.index() ? prefix.at() : 0);
    if (!bytes.empty()) payload.push_back({bytes, dumped});
  }
  return payload;
}

grpc::ByteBuffer PayloadMessage(uint32_t field, const std::vector<Slice>& payload) {
  size_t length = 0;
  for (const Slice& slice : payload) length += slice.bytes.size();
  uint8_t prefix[2 * kMaxVarintBytes];
  size_t prefix_bytes = WriteVarint(uint64_t{field << 3 | kLengthDelimited}, prefix);
  prefix_bytes += WriteVarint(length, prefix + prefix_bytes);
  GrpcSlices slices;
  slices.reserve(1 + payload.size());
  slices.emplace_back(prefix, prefix_bytes);
  for (const Slice& slice : payload) slices.push_back(Share(slice));
  return {slices.data(), slices.size()};
}

}  // namespace kvcompress
