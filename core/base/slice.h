#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "core/base/buffer.h"
#include "core/base/bytes.h"

namespace kvcompress {

// Bytes in memory that `owner` keeps alive: passed on and cut up without being copied.
struct Slice {
  ByteSpan bytes;
  std::shared_ptr<const void> owner;
  // Whether someone else may write them while we read: nothing that was read once may be taken for what a second
  // look would give.
  bool changing = false;

  static Slice Of(Buffer buffer) {
    auto owner = std::make_shared<const Buffer>(std::move(buffer));
    const ByteSpan bytes = owner->span();
    return {bytes, std::move(owner)};
  }

  Slice Sub(size_t offset, size_t count) const { return {bytes.subspan(offset, count), owner, changing}; }
};

// Copies all bytes of `pieces` to `whole`, which becomes as large as they are.
inline void Gather(const std::vector<Slice>& pieces, Buffer& whole) {
  size_t size = 0;
  for (const Slice& piece : pieces) size += piece.bytes.size();
  whole.Resize(0);  // so that growing does not copy what it held
  whole.Resize(size);
  std::byte* at = whole.data();
  for (const Slice& piece : pieces) {
    if (!piece.bytes.empty()) std::memcpy(at, piece.bytes.data(), piece.bytes.size());
    at += piece.bytes.size();
  }
}

}  // namespace kvcompress
