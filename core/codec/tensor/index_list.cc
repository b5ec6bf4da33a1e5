#include "core/codec/tensor/index_list.h"

namespace kvcompress {

size_t WriteIndexList(ByteSpan mask, std::byte* out) {
  const std::byte* const begin = out;
  uint32_t next = 0;  // the smallest index that can follow
  ForEachMarked(mask, [&](uint32_t index) {
    uint32_t gap = index - next;
    next = index + 1;
    for (; gap >= 0x80; gap >>= 7) *out++ = static_cast<std::byte>(gap | 0x80);
    *out++ = static_cast<std::byte>(gap);
  });
  return static_cast<size_t>(out - begin);
}

absl::Status ReadIndexList(ByteSpan bytes, size_t count, size_t limit, std::vector<uint32_t>& indices) {
  const auto fault = [] { return absl::DataLossError("list of indices is damaged"); };
  if (bytes.size() < count || bytes.size() > MaxIndexListBytes(count)) return fault();
  indices.clear();
  size_t at = 0;
  uint64_t next = 0;
  for (size_t i = 0; i < count; ++i) {
    uint32_t gap = 0;
    for (int shift = 0;; shift += 7) {
      if (at == bytes.size() || shift == 28) return fault();
      const auto byte = std::to_integer<uint32_t>(bytes[at++]);
      gap |= (byte & 0x7f) << shift;
      if (byte >= 0x80) continue;
      if (byte == 0 && shift > 0) return fault();
      break;
    }
    const uint64_t index = next + gap;
    if (index >= limit) return fault();
    indices.push_back(static_cast<uint32_t>(index));
    next = index + 1;
  }
  if (at != bytes.size()) return fault();
  return absl::OkStatus();
}

}  // namespace kvcompress
