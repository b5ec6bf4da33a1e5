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

// In the byte of the form, of a coded block: whether the block begins in the middle of a sequence, and whether a token
// has more than one head. What they say no of is left out.
inline constexpr uint8_t kHasFirst = 2;
inline constexpr uint8_t kHasHeads = 4;

inline std::byte* WriteHeader(const TransformHeader& header, bool has_artifact, std::byte* to) {
  const TransformLayout& layout = header.layout;
  auto form = static_cast<uint8_t>(header.form);
  if (header.form == BlockForm::kCoded) {
    form |= (layout.first != 0 ? kHasFirst : 0) | (layout.head_dim != layout.channels ? kHasHeads : 0);
  }
  *to++ = std::byte{form};
  if (header.form == BlockForm::kStored) return to;
  StoreLE(std::bit_cast<uint32_t>(header.step), to);
  to += 4;
  to = WriteLeb128(layout.tokens, WriteLeb128(layout.channels, to));
  if ((form & kHasFirst) != 0) to = WriteLeb128(layout.first, to);
  if ((form & kHasHeads) != 0) to = WriteLeb128(layout.head_dim, to);
  return has_artifact ? WriteLeb128(layout.arrangement, WriteLeb128(layout.subject, to)) : to;
}

// Takes the header of a block of `count` values from the front of `bytes`; false for one that no encoder writes.
inline bool ReadHeader(ByteSpan& bytes, size_t count, bool has_artifact, TransformHeader& header) {
  if (bytes.empty()) return false;
  const auto form = std::to_integer<uint8_t>(bytes.front());
  if (form > (kHasHeads | kHasFirst | 1) || (form % 2 == 0 && form != 0)) return false;
  header.form = static_cast<BlockForm>(form % 2);
  bytes = bytes.subspan(1);
  if (header.form == BlockForm::kStored) return true;
  if (bytes.size() < 4) return false;
  header.step = std::bit_cast<float>(LoadLE<uint32_t>(bytes.data()));
  bytes = bytes.subspan(4);
  uint64_t channels = 0;
  if (!ReadLeb128(bytes, channels) || !ReadLeb128(bytes, header.layout.tokens)) return false;
  uint64_t head_dim = channels;
  if ((form & kHasFirst) != 0 && !ReadLeb128(bytes, header.layout.first)) return false;
  if ((form & kHasHeads) != 0 && !ReadLeb128(bytes, head_dim)) return false;
  if (channels > TransformLayout::kMaxChannels || head_dim > channels) return false;
  if (has_artifact && (!ReadLeb128(bytes, header.layout.subject) || !ReadLeb128(bytes, header.layout.arrangement))) {
    return false;
  }
  header.layout.channels = static_cast<uint32_t>(channels);
  header.layout.head_dim = static_cast<uint32_t>(head_dim);
  return header.step >= kMinStep && header.step <= kMaxStep && header.layout.is_valid(count);
}

}  // namespace kvcompress
