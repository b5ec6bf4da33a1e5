#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/bytes.h"

namespace kvcompress {

// Bytes that stand in memory as pieces of one size at regular distances, in several levels: the keys of a page that has
// its values between them. They are read once, in order, a part at a time. The memory may change meanwhile.
class StridedBytes {
 public:
  static constexpr size_t kMaxLevels = 8;
  struct Level {
    uint64_t count;
    uint64_t stride;  // bytes from one to the next
  };

  // `size` bytes in all, of which the first is that at `offset` in `memory`. `levels` go from the outermost to the
  // innermost, whose steps are from piece to piece; pieces may overlap. INVALID_ARGUMENT for none or more than
  // kMaxLevels, for a count of 0, a size that is no multiple of the number of pieces, and for a piece past the memory's
  // end.
  static absl::StatusOr<StridedBytes> In(ByteSpan memory, uint64_t offset, uint64_t size, std::vector<Level> levels);

  uint64_t left() const { return size_ - next_; }
  // Copies the next bytes, as many as `to` has: at most left().
  void Read(MutableByteSpan to);

 private:
  StridedBytes(const std::byte* begin, uint64_t size, uint64_t piece, std::vector<Level> levels);

  const std::byte* begin_;
  uint64_t size_;
  uint64_t piece_;             // bytes
  std::vector<Level> levels_;  // of more than one each, and no two of which are as good as one
  uint64_t next_ = 0;
};

}  // namespace kvcompress
