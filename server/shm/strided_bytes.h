#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/bytes.h"
#include "core/base/strided_span.h"

namespace kvcompress {

// Bytes of a client's memory in pieces at regular distances, in several levels, which may change meanwhile.
class StridedBytes {
 public:
  static constexpr size_t kMaxLevels = StridedSpan<const std::byte>::kMaxLevels;
  struct Level {
    uint64_t count;
    uint64_t stride;  // bytes from one to the next
  };

  // `size` bytes in all, of which the first is that at `offset` in `memory`. `levels` go from the outermost to the
  // innermost, whose steps are from piece to piece; pieces may overlap. INVALID_ARGUMENT for none or more than
  // kMaxLevels, for a count of 0, a size that is no multiple of the number of pieces, and for a piece past the memory's
  // end.
  static absl::StatusOr<StridedBytes> In(ByteSpan memory, uint64_t offset, uint64_t size,
                                         const std::vector<Level>& levels);

  uint64_t left() const { return bytes_.left(); }
  // Copies the next bytes, as many as `to` has: at most left().
  void Read(MutableByteSpan to) { bytes_.Read(to); }

 private:
  explicit StridedBytes(const StridedSpan<const std::byte>& bytes) : bytes_(bytes) {}

  StridedSpan<const std::byte> bytes_;
};

}  // namespace kvcompress
