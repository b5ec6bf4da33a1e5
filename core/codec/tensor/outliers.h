#pragma once

#include "absl/status/status.h"
#include "core/base/buffer.h"
#include "core/base/dtype.h"
#include "core/codec/codec.h"

namespace kvcompress {

// The values of a block of largest magnitude, kept exactly beside a lossy codec: two streams, their indices and the
// values (docs/format.md, "quant").
class Outliers {
 public:
  static constexpr size_t kStreams = 2;

  explicit Outliers(double fraction) : fraction_(fraction) {}

  double fraction() const { return fraction_; }
  // How many of a block's values.
  size_t Count(size_t count) const { return static_cast<size_t>(fraction_ * static_cast<double>(count)); }
  void StreamBounds(DType dtype, size_t count, std::span<size_t> bounds) const;

  // Writes the outliers among `values` to the streams, and to `rest` the values with +0 in their places.
  // INVALID_ARGUMENT, without a text, for one above `max_magnitude`.
  absl::Status Take(DType dtype, float max_magnitude, ByteSpan values, std::span<StreamBuffer> streams,
                    Buffer& rest) const;
  absl::Status Put(DType dtype, std::span<const ByteSpan> streams, MutableByteSpan values) const;

 private:
  double fraction_;
};

}  // namespace kvcompress
