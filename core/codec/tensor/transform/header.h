#pragma once

#include <bit>

#include "core/base/bytes.h"
#include "core/base/leb128.h"
#include "core/codec/tensor/transform/block.h"
#include "core/codec/tensor/transform/segment.h"
#include "core/codec/tensor/transform/strip.h"

// What stands in front of the range coder's text.
namespace kvcompress {

struct TransformHeader {
  BlockForm form = BlockForm::kCoded;
  float step = 1;
  TransformLayout layout;
};

inline std::byte* WriteHeader(const TransformHeader& header, bool has_artifact, std::byte* to) {
  *to++ = static_cast<std::byte>(header.form);
  if (header.form == BlockForm::kStored) return to;
  StoreLE(std::bit_cast<uint32_t>(header.step), to);
  to += 4;
  for (const uint64_t number : {uint64_t{header.layout.channels}, header.layout.tokens, header.layout.first,
                                uint64_t{header.layout.head_dim}}) {
    to = WriteLeb128(number, to);
  }
  return has_artifact ? WriteLeb128(header.layout.arrangement, WriteLeb128(header.layout.subject, to)) : to;
}

// Takes the header of a block of `count` values from the front of `bytes`; false for one that no encoder writes.
inline bool ReadHeader(ByteSpan& bytes, size_t count, bool has_artifact, TransformHeader& header) {
  if (bytes.empty() || std::to_integer<uint8_t>(bytes.front()) > 1) return false;
  header.form = static_cast<BlockForm>(bytes.front());
  bytes = bytes.subspan(1);
  if (header.form == BlockForm::kStored) return true;
  if (bytes.size() < 4) return false;
  header.step = std::bit_cast<float>(LoadLE<uint32_t>(bytes.data()));
  bytes = bytes.subspan(4);
  uint64_t channels = 0;
  uint64_t head_dim = 0;
  if (!ReadLeb128(bytes, channels) || !ReadLeb128(bytes, header.layout.tokens) ||
      !ReadLeb128(bytes, header.layout.first) || !ReadLeb128(bytes, head_dim) ||
      channels > TransformLayout::kMaxChannels || head_dim > channels) {
    return false;
  }
  if (has_artifact && (!ReadLeb128(bytes, header.layout.subject) || !ReadLeb128(bytes, header.layout.arrangement))) {
    return false;
  }
  header.layout.channels = static_cast<uint32_t>(channels);
  header.layout.head_dim = static_cast<uint32_t>(head_dim);
  return header.step >= kMinStep && header.step <= kMaxStep && header.layout.is_valid(count);
}

}  // namespace kvcompress
