#pragma once

#include <cstring>
#include <memory>

#include "core/base/bytes.h"

namespace kvcompress {

// Bytes that are not set before they are written: a block's output is as large as its codec's bound, and clearing it
// first costs a tenth of the kernel's time.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t size) { Resize(size); }
  static Buffer Copy(ByteSpan bytes) {
    Buffer buffer(bytes.size());
    if (!bytes.empty()) std::memcpy(buffer.data(), bytes.data(), bytes.size());
    return buffer;
  }

  // Keeps the first min(size, old size) bytes; the rest is undefined.
  void Resize(size_t size) {
    if (size > capacity_) {
      auto grown = std::make_unique_for_overwrite<std::byte[]>(size);
      if (size_ > 0) std::memcpy(grown.get(), data_.get(), size_);
      data_ = std::move(grown);
      capacity_ = size;
    }
    size_ = size;
  }

  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  size_t size() const { return size_; }
  size_t capacity() const { return capacity_; }
  MutableByteSpan span() { return {data(), size_}; }
  ByteSpan span() const { return {data(), size_}; }

 private:
  std::unique_ptr<std::byte[]> data_;
  size_t size_ = 0;
  size_t capacity_ = 0;
};

}  // namespace kvcompress
