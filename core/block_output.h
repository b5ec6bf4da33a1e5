#pragma once

#include <utility>

#include "kvcompress/base/buffer.h"
#include "kvcompress/base/slice.h"
#include "kvcompress/compressor.h"

namespace kvcompress {

// Where a block's output goes: to the place that it was given, or, without one, to memory of its own.
class BlockOutput {
 public:
  // Before anything is written.
  void set_place(Place place) { place_ = std::move(place); }

  // Memory to write to: the place, or `size` bytes, of which those that were written before stay.
  MutableByteSpan Allocate(size_t size) {
    if (!place_.bytes.empty()) return place_.bytes;
    buffer_.Resize(size);
    return buffer_.span();
  }
  // Gives back what memory of its own has above `size` bytes. Returns how many were copied for it.
  size_t Shrink(size_t size) {
    if (!place_.bytes.empty()) return 0;
    buffer_ = Buffer::Copy(buffer_.span().first(size));
    return size;
  }
  // The first `size` bytes.
  Slice Take(size_t size) {
    if (!place_.bytes.empty()) return {place_.bytes.first(size), std::move(place_.owner)};
    buffer_.Resize(size);
    return Slice::Of(std::move(buffer_));
  }

 private:
  Place place_;
  Buffer buffer_;
};

}  // namespace kvcompress
