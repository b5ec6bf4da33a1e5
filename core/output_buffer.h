#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "core/base/buffer.h"
#include "core/base/slice.h"

namespace kvcompress {

// Memory that `owner` keeps alive, to be written once.
struct OutputBuffer {
  MutableByteSpan bytes;
  std::shared_ptr<const void> owner;
};

// The caller's memory for the output of a tensor, where it is known ahead how much goes where: blocks are then written
// there by whichever thread makes them. It may be written by someone else meanwhile.
class OutputBuffers {
 public:
  virtual ~OutputBuffers() = default;
  // The place for the next `size` bytes of output; empty if no place takes them in one piece. Called on the thread that
  // feeds the stream, in the order of the output, for every block of a tensor or for none; `last` is the tensor's last.
  // What is written there comes out of the stream in its turn, like all other bytes.
  virtual OutputBuffer Take(uint64_t size, bool last) = 0;
};

// Where a block's output goes: to the buffer that it was given, or, without one, to memory of its own.
class BlockOutput {
 public:
  // Before anything is written.
  void set_buffer(OutputBuffer buffer) { given_ = std::move(buffer); }

  // Memory to write to: that buffer, or `size` bytes, of which those that were written before stay.
  MutableByteSpan Allocate(size_t size) {
    if (!given_.bytes.empty()) return given_.bytes;
    own_.Resize(size);
    return own_.span();
  }
  // Gives back what memory of its own has above `size` bytes. Returns how many were copied for it.
  size_t Shrink(size_t size) {
    if (!given_.bytes.empty()) return 0;
    own_ = Buffer::Copy(own_.span().first(size));
    return size;
  }
  // The first `size` bytes.
  Slice Take(size_t size) {
    if (!given_.bytes.empty()) return {given_.bytes.first(size), std::move(given_.owner)};
    own_.Resize(size);
    return Slice::Of(std::move(own_));
  }

 private:
  OutputBuffer given_;
  Buffer own_;
};

}  // namespace kvcompress
