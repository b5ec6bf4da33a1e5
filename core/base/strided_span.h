#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include "core/base/bytes.h"

namespace kvcompress {

struct StridedLevel {
  uint64_t count;
  int64_t stride;  // bytes from one to the next
};

// Bytes that stand in memory as pieces of one size at regular distances, in several levels: the keys of a page that has
// its values between them, a tensor whose axes lie in another order. They are gone through once, in order, a part at a
// time. `Byte` is std::byte, or const std::byte of what is only read.
template <typename Byte>
class StridedSpan {
 public:
  static constexpr size_t kMaxLevels = 8;

  StridedSpan() = default;
  // Of one piece.
  explicit StridedSpan(std::span<Byte> bytes) : begin_(bytes.data()), size_(bytes.size()), piece_(bytes.size()) {}
  // The first piece begins at `begin`. `levels` go from the outermost to the innermost, whose steps are from piece to
  // piece; at most kMaxLevels. Pieces may overlap where they are read.
  StridedSpan(Byte* begin, uint64_t piece, std::span<const StridedLevel> levels);

  uint64_t left() const { return size_ - next_; }
  // The next bytes as far as they follow one another; none at the end.
  std::span<Byte> Together() const;

  // Copies the next bytes, as many as `to` has: at most left().
  void Read(MutableByteSpan to) {
    Take(to.size(), [&to](ByteSpan part) {
      std::memcpy(to.data(), part.data(), part.size());
      to = to.subspan(part.size());
    });
  }
  // Sets the next bytes, as many as `from` has: at most left().
  void Write(ByteSpan from) requires(!std::is_const_v<Byte>) {
    Take(from.size(), [&from](MutableByteSpan part) {
      std::memcpy(part.data(), from.data(), part.size());
      from = from.subspan(part.size());
    });
  }
  // Passes over bytes: at most left().
  void Skip(uint64_t bytes) { next_ += bytes; }

 private:
  // Pieces that follow one another in memory from a byte on.
  struct Run {
    Byte* at;
    uint64_t within;  // bytes of the first piece that come before
    uint64_t pieces;
    int64_t stride;
  };
  Run Next() const;

  template <typename Visit>
  void Take(uint64_t bytes, Visit visit) {
    while (bytes > 0) {
      Run run = Next();
      for (; run.pieces > 0 && bytes > 0; --run.pieces, run.at += run.stride, run.within = 0) {
        if (run.pieces > uint64_t{kAhead} && piece_ >= kLine) Prefetch(run.at + kAhead * run.stride);
        const uint64_t part = std::min(piece_ - run.within, bytes);
        visit(std::span<Byte>(run.at + run.within, part));
        bytes -= part;
        next_ += part;
      }
    }
  }

  // The processor does not guess where the pieces to come are.
  void Prefetch(Byte* piece) const {
    const uint64_t bytes = std::min(piece_, kMostPrefetched);
    for (uint64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(piece + at, std::is_const_v<Byte> ? 0 : 1);
  }
  static constexpr int64_t kAhead = 8;  // pieces
  static constexpr uint64_t kLine = 64;
  static constexpr uint64_t kMostPrefetched = 1024;

  Byte* begin_ = nullptr;
  uint64_t size_ = 0;
  uint64_t piece_ = 0;                             // bytes
  std::array<StridedLevel, kMaxLevels> levels_{};  // from the innermost; of more than one each, no two as good as one
  size_t depth_ = 0;
  uint64_t next_ = 0;
};

template <typename Byte>
StridedSpan<Byte>::StridedSpan(Byte* begin, uint64_t piece, std::span<const StridedLevel> levels)
    : begin_(begin), size_(piece), piece_(piece) {
  for (size_t i = levels.size(); i-- > 0;) {
    const auto& [count, stride] = levels[i];
    size_ *= count;
    if (count <= 1) continue;
    StridedLevel* inner = depth_ > 0 ? &levels_[depth_ - 1] : nullptr;
    if (inner == nullptr && stride == static_cast<int64_t>(piece_)) {
      piece_ *= count;
    } else if (inner != nullptr && stride == static_cast<int64_t>(inner->count) * inner->stride) {
      inner->count *= count;
    } else {
      levels_[depth_++] = levels[i];
    }
  }
}

template <typename Byte>
typename StridedSpan<Byte>::Run StridedSpan<Byte>::Next() const {
  uint64_t index = next_ / piece_;
  Run run{begin_, next_ % piece_, 1, 0};
  for (size_t level = 0; level < depth_; ++level) {
    const auto& [count, stride] = levels_[level];
    const uint64_t step = index % count;
    run.at += static_cast<int64_t>(step) * stride;
    index /= count;
    if (level == 0) {
      run.pieces = count - step;
      run.stride = stride;
    }
  }
  return run;
}

template <typename Byte>
std::span<Byte> StridedSpan<Byte>::Together() const {
  if (left() == 0) return {};
  const Run run = Next();
  return {run.at + run.within, piece_ - run.within};
}

}  // namespace kvcompress
