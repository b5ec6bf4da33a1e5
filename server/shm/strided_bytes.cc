#include "server/shm/strided_bytes.h"

#include <algorithm>
#include <cstring>

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
                                              std::vector<Level> levels) {
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
  return StridedBytes(memory.data() + offset, size, piece, std::move(levels));
}

StridedBytes::StridedBytes(const std::byte* begin, uint64_t size, uint64_t piece, std::vector<Level> levels)
    : begin_(begin), size_(size), piece_(piece) {
  for (auto level = levels.rbegin(); level != levels.rend(); ++level) {
    if (level->count == 1) continue;
    if (levels_.empty() && level->stride == piece_) {
      piece_ *= level->count;
    } else if (!levels_.empty() && level->stride == levels_.back().count * levels_.back().stride) {
      levels_.back().count *= level->count;
    } else {
      levels_.push_back(*level);
    }
  }
  std::ranges::reverse(levels_);
}

void StridedBytes::Read(MutableByteSpan to) {
  while (!to.empty()) {
    uint64_t index = next_ / piece_;
    uint64_t within = next_ % piece_;
    const std::byte* at = begin_;
    uint64_t run = 1;  // pieces up to the end of the innermost level
    uint64_t stride = 0;
    for (size_t level = levels_.size(); level-- > 0;) {
      const uint64_t step = index % levels_[level].count;
      at += step * levels_[level].stride;
      index /= levels_[level].count;
      if (level + 1 < levels_.size()) continue;
      run = levels_[level].count - step;
      stride = levels_[level].stride;
    }
    for (; run > 0 && !to.empty(); --run, at += stride, within = 0) {
      const uint64_t take = std::min<uint64_t>(piece_ - within, to.size());
      std::memcpy(to.data(), at + within, take);
      to = to.subspan(take);
      next_ += take;
    }
  }
}

}  // namespace kvcompress
