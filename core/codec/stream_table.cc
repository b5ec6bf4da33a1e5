#include "core/codec/stream_table.h"

#include <cstring>
#include <limits>

#include "core/base/leb128.h"

namespace kvcompress {

size_t WriteStreamTable(std::span<const uint32_t> sizes, bool compact, MutableByteSpan payload) {
  std::byte* at = payload.data();
  if (!compact) {
    for (const uint32_t size : sizes) {
      StoreLE(size, at);
      at += 4;
    }
    return payload.size();
  }
  // The last size is what the payload has left.
  for (const uint32_t size : sizes.first(sizes.size() - 1)) at = WriteLeb128(size, at);
  const ByteSpan streams = payload.subspan(MaxTableBytes(sizes.size()));
  std::memmove(at, streams.data(), streams.size());
  return static_cast<size_t>(at - payload.data()) + streams.size();
}

bool ReadStreamTable(bool compact, size_t streams, size_t byte_codecs, ByteSpan& payload,
                     std::vector<uint32_t>& sizes) {
  sizes.resize(streams * (1 + byte_codecs));
  if (!compact) {
    ByteReader reader(payload);
    for (uint32_t& size : sizes) {
      if (!reader.Read(size)) return false;
    }
    payload = payload.last(reader.remaining());
    return true;
  }
  uint64_t before = 0;  // bytes of the streams before the last one
  for (size_t i = 0; i + 1 < sizes.size(); ++i) {
    uint64_t size = 0;
    if (!ReadLeb128(payload, size) || size > std::numeric_limits<uint32_t>::max()) return false;
    sizes[i] = static_cast<uint32_t>(size);
    if (i % (1 + byte_codecs) == byte_codecs) before += size;
  }
  if (before > payload.size()) return false;
  sizes.back() = static_cast<uint32_t>(payload.size() - before);
  return true;
}

}  // namespace kvcompress
