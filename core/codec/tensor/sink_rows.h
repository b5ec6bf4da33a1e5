#pragma once

#include <algorithm>
#include <cstdint>

#include "absl/status/statusor.h"
#include "core/base/bytes.h"
#include "core/base/tensor.h"

namespace kvcompress {

// Values of a row of `rotated`: what the last axis has or, where that is shorter or longer than rows can be, 128.
size_t RowLength(const TensorDesc& tensor);

// Which rows of a block are of the first tokens of a sequence, the sinks of attention (docs/format.md, "rotated").
class SinkRows {
 public:
  static constexpr size_t kBytes = 24;

  SinkRows() = default;  // no row is one
  // Of a block of rows of `row` values that begins with the tensor's value `first`: those of the first `tokens` tokens
  // of each sequence. None where the tensor has no tokens, or its last axis is no row.
  SinkRows(const TensorDesc& tensor, size_t row, uint64_t first, uint64_t tokens);

  // DATA_LOSS for bytes that Store cannot have written.
  static absl::StatusOr<SinkRows> Load(ByteSpan bytes);
  void Store(std::byte* to) const;

  // Calls visit(count, are_sinks) for the runs of values of one kind that `count` values are made of, from value
  // `begin` of the block on, which begins a row.
  template <class Visit>
  void ForEachRun(size_t row, size_t begin, size_t count, Visit visit) const {
    while (count > 0) {
      const uint64_t at = RowInSequence(begin / row);
      const bool are_sinks = at < sinks_;  // there are none without sequences
      const uint64_t rows = period_ > 0 ? (are_sinks ? sinks_ : period_) - at : count;
      const size_t n = rows > count / row ? count : static_cast<size_t>(rows) * row;
      visit(n, are_sinks);
      begin += n;
      count -= n;
    }
  }

  bool has_sequences() const { return period_ > 0; }
  // Which row of its sequence row `index` of the block is.
  uint64_t RowInSequence(uint64_t index) const { return period_ > 0 ? (first_ + index) % period_ : index; }

  // How many of a block's `count` values are in such rows.
  size_t Count(size_t row, size_t count) const {
    size_t sinks = 0;
    ForEachRun(row, 0, count, [&](size_t n, bool are_sinks) { sinks += are_sinks ? n : 0; });
    return sinks;
  }

 private:
  uint64_t period_ = 0;  // rows of a sequence; 0: there are no sequences
  uint64_t sinks_ = 0;   // and how many of them, from the first on
  uint64_t first_ = 0;   // which of them is the block's first row
};

}  // namespace kvcompress
