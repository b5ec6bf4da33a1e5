#include "core/codec/tensor/sink_rows.h"

#include "core/simd/rotated_quant.h"
#include "core/simd/token_sums.h"

namespace kvcompress {

size_t RowLength(const TensorDesc& tensor) {
  constexpr uint64_t kMinRow = 16;
  constexpr size_t kOtherRow = 128;
  const uint64_t extent = tensor.shape.empty() ? 1 : tensor.shape.back();
  return extent < kMinRow || extent > simd::kMaxRotatedRow ? kOtherRow : static_cast<size_t>(extent);
}

SinkRows::SinkRows(const TensorDesc& tensor, size_t row, uint64_t first, uint64_t tokens) {
  const TokenLayout layout = TokenLayoutOf(tensor);
  if (!layout.has_tokens() || tensor.shape.back() != row || layout.channels % row != 0) return;
  period_ = layout.sequence() / row;
  sinks_ = std::min(tokens, layout.tokens) * (layout.channels / row);
  first_ = first / row % period_;
}

absl::StatusOr<SinkRows> SinkRows::Load(ByteSpan bytes) {
  if (bytes.size() != kBytes) return absl::DataLossError("the place among tokens has the wrong size");
  SinkRows rows;
  rows.period_ = LoadLE<uint64_t>(bytes.data());
  rows.sinks_ = LoadLE<uint64_t>(bytes.data() + 8);
  rows.first_ = LoadLE<uint64_t>(bytes.data() + 16);
  if (rows.period_ > kMaxTensorElements || rows.sinks_ > rows.period_ ||
      rows.first_ >= std::max<uint64_t>(rows.period_, 1)) {
    return absl::DataLossError("the place among tokens is outside of a sequence");
  }
  return rows;
}

void SinkRows::Store(std::byte* to) const {
  StoreLE(period_, to);
  StoreLE(sinks_, to + 8);
  StoreLE(first_, to + 16);
}

}  // namespace kvcompress
