#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/bytes.h"

namespace kvcompress {

// Bytes that can be read at any offset, by many threads at once.
class ByteSource {
 public:
  virtual ~ByteSource() = default;

  virtual uint64_t size() const = 0;

  // The bytes [offset, offset + count): in place where the source holds them in memory, else read into `scratch`,
  // which is resized. The span is valid until `scratch` changes and while the source lives.
  // OUT_OF_RANGE past the end; DATA_LOSS when the source turned out shorter than it was.
  virtual absl::StatusOr<ByteSpan> Get(uint64_t offset, size_t count, std::vector<std::byte>& scratch) const = 0;
};

// A source over memory that it owns, or only refers to.
class MemorySource final : public ByteSource {
 public:
  explicit MemorySource(ByteSpan bytes) : bytes_(bytes) {}
  explicit MemorySource(std::vector<std::byte> bytes) : owned_(std::move(bytes)), bytes_(owned_) {}

  uint64_t size() const override { return bytes_.size(); }

  absl::StatusOr<ByteSpan> Get(uint64_t offset, size_t count, std::vector<std::byte>&) const override {
    if (offset > bytes_.size() || count > bytes_.size() - offset) {
      return absl::OutOfRangeError("read past the end of the buffer");
    }
    return bytes_.subspan(offset, count);
  }

 private:
  std::vector<std::byte> owned_;
  ByteSpan bytes_;
};

}  // namespace kvcompress
