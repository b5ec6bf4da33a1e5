#include "server/shm/strided_bytes.h"

#include "absl/strings/str_format.h"

namespace kvcompress {
namespace {

using Level = StridedBytes::Level;

// The number of pieces; 0 when there are none, or more than `most`.
uint64_t Pieces(const std::vector<Level>& levels, uint64_t most) {
  uint64_t pieces = 1;
  for (const Level& level : levels) {
    if (level.count == 0 || level.count > most / pieces) return 0;
    pieces *= level.count;
  }
  return pieces;
}

// Whether the last piece begins at most `room` bytes after the first.
bool EndsWithin(uint64_t room, const std::vector<Level>& levels) {
  for (const auto& [count, stride] : levels) {
    if (count == 1) continue;
    if (stride > room / (count - 1)) return false;
    room -= stride * (count - 1);
  }
  return true;
}

}  // namespace

absl::StatusOr<StridedBytes> StridedBytes::In(ByteSpan memory, uint64_t offset, uint64_t size,
                                              const std::vector<Level>& levels) {
  if (levels.empty() || levels.size() > kMaxLevels) {
    return absl::InvalidArgumentError(
        absl::StrFormat("shared memory range of %d levels: expected 1 to %d", levels.size(), kMaxLevels));
  }
  const uint64_t pieces = Pieces(levels, size);
  if (pieces == 0 || size % pieces != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("shared memory range of %d bytes: expected a multiple of its number of pieces", size));
  }
  const uint64_t piece = size / pieces;
  if (offset > memory.size() || piece > memory.size() - offset || !EndsWithin(memory.size() - offset - piece, levels)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "shared memory range of %d pieces of %d bytes from %d on ends behind its region", pieces, piece, offset));
  }
  std::vector<StridedLevel> signed_levels;
  signed_levels.reserve(levels.size());
  for (const auto& [count, stride] : levels) signed_levels.push_back({count, static_cast<int64_t>(stride)});
  return StridedBytes(StridedSpan(memory.data() + offset, piece, std::span<const StridedLevel>(signed_levels)));
}

}  // namespace kvcompress
