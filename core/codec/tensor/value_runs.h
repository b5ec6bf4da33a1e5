#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <span>

#include "core/base/buffer.h"
#include "core/codec/codec.h"
#include "core/simd/group_quant.h"

namespace kvcompress {

// The pieces of a block as runs of whole groups of values: a group that lies in more than one piece is put together in
// memory of this thread's, which is good until the next one makes its runs.
class ValueRuns {
 public:
  ValueRuns(size_t group, size_t width, std::span<const ByteSpan> pieces) : width_(width), group_bytes_(group * width) {
    Joints().Resize((kMaxBlockPieces + 1) * group_bytes_);
    for (const ByteSpan piece : pieces) Add(piece);
    if (joined_ > 0) EndJoint();
  }

  // All but the last have whole groups.
  std::span<const simd::ValueRun> runs() const { return {runs_.data(), size_}; }
  size_t count() const { return bytes_ / width_; }  // of values

 private:
  static Buffer& Joints() {
    thread_local Buffer joints;
    return joints;
  }

  void Add(ByteSpan piece) {
    bytes_ += piece.size();
    if (joined_ > 0) {
      const size_t take = std::min(group_bytes_ - joined_, piece.size());
      Join(piece.first(take));
      piece = piece.subspan(take);
      if (joined_ == group_bytes_) EndJoint();
    }
    const size_t whole = piece.size() / group_bytes_ * group_bytes_;
    if (whole > 0) runs_[size_++] = {piece.data(), whole / width_};
    Join(piece.subspan(whole));
  }
  std::byte* Joint() { return Joints().data() + joint_ * group_bytes_; }
  void Join(ByteSpan bytes) {
    if (bytes.empty()) return;
    std::memcpy(Joint() + joined_, bytes.data(), bytes.size());
    joined_ += bytes.size();
  }
  void EndJoint() {
    runs_[size_++] = {Joint(), joined_ / width_};
    ++joint_;
    joined_ = 0;
  }

  const size_t width_;
  const size_t group_bytes_;
  size_t bytes_ = 0;
  size_t size_ = 0;  // of runs_
  size_t joint_ = 0;
  size_t joined_ = 0;  // bytes of the joint at hand
  // A piece ends at most one joint, begins one, and has a run between them.
  std::array<simd::ValueRun, 2 * kMaxBlockPieces + 1> runs_;
};

}  // namespace kvcompress
