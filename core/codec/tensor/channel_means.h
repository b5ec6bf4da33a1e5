#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "core/base/bytes.h"
#include "core/base/dtype.h"
#include "core/simd/rotary.h"

namespace kvcompress {

// Each channel's mean over some consecutive tokens of a sequence, without a rotary embedding (docs/format.md,
// "rotated"). Immutable; tables, and the means of the run that has begun, are of the thread.
class ChannelMeans {
 public:
  // `rotary` with `dims` 0: all channels of a row turn. Its `offset` is 0.
  explicit ChannelMeans(const simd::RotaryEmbedding& rotary) : rotary_(rotary) {}

  // Rows of a run, and which one of its sequence, of `heads` rows a token, is the first.
  struct Run {
    size_t rows;
    size_t row;  // values
    size_t heads;
    uint64_t first;

    // Rows that have means of their own: a token's, or all.
    size_t columns() const { return rows < heads ? rows : heads; }
    size_t means_bytes() const { return 1 + 2 * columns() * row; }
  };

  // Takes the means from the values of a run, finite ones of `dtype`, as F32; writes means_bytes() to `means`. Adds to
  // `gain`, if not null, what turning back brought.
  void Remove(const Run& run, DType dtype, float* values, std::byte* means, simd::RotaryGain* gain) const;

  // The inverse, some rows at a time: Begin, then Add for the rows of the run from `first` on.
  // DATA_LOSS for means that Remove cannot have written.
  absl::Status Begin(const Run& run, DType dtype, const std::byte* means) const;
  void Add(const Run& run, size_t first, size_t rows, float* values) const;

 private:
  size_t Dims(const Run& run) const;
  void Turn(const Run& run, size_t first, size_t rows, simd::RotaryTurn turn, float* values) const;

  simd::RotaryEmbedding rotary_;
};

}  // namespace kvcompress
