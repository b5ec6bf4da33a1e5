#include "core/calibration/rows.h"

#include <cmath>

#include "absl/strings/str_format.h"
#include "core/base/half.h"
#include "core/base/status_macros.h"

namespace kvcompress {

absl::StatusOr<RowLayout> RowLayoutOf(const TensorDesc& tensor) {
  if (IsOpaque(tensor.dtype)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("its dtype is %s, whose values are not known", DTypeName(tensor.dtype)));
  }
  RowLayout layout;
  const struct {
    AxisRole role;
    const char* name;
    uint64_t& extent;
    uint64_t& stride;
    bool found = false;
  } fields[] = {{AxisRole::kBatch, "batch", layout.sequences, layout.sequence_stride},
                {AxisRole::kSeq, "seq", layout.tokens, layout.token_stride},
                {AxisRole::kHeads, "heads", layout.heads, layout.head_stride}};
  const size_t rank = tensor.shape.size();
  if (rank == 0 || tensor.axes.back() != AxisRole::kHeadDim) {
    return absl::InvalidArgumentError("its last axis is not head_dim");
  }
  layout.head_dim = tensor.shape.back();
  uint64_t stride = layout.head_dim;
  unsigned seen = 0;
  for (size_t axis = rank - 1; axis-- > 0;) {
    const uint64_t extent = tensor.shape[axis];
    bool known = false;
    for (size_t i = 0; i < std::size(fields); ++i) {
      if (fields[i].role != tensor.axes[axis]) continue;
      if ((seen & 1u << i) != 0) {
        return absl::InvalidArgumentError(absl::StrFormat("it has two %s axes", fields[i].name));
      }
      seen |= 1u << i;
      known = true;
      fields[i].extent = extent;
      fields[i].stride = stride;
    }
    if (!known && extent > 1) {
      return absl::InvalidArgumentError(
          absl::StrFormat("its axis %d is none of batch, heads and seq: where its tokens stand is not known", axis));
    }
    stride *= extent;
  }
  if ((seen & 2u) == 0) return absl::InvalidArgumentError("it has no seq axis");
  return layout;
}

absl::Status ReadRows(const ByteSource& source, DType dtype, const RowLayout& layout, uint64_t sequence, uint64_t first,
                      size_t count, std::vector<std::byte>& scratch, std::vector<float>& rows) {
  const size_t width = DTypeSize(dtype);
  const size_t dim = layout.head_dim;
  rows.resize(layout.heads * count * dim);
  // Heads that lie within a token are read together, others one by one.
  const uint64_t together = layout.head_stride > layout.token_stride ? 1 : layout.heads;
  for (uint64_t head = 0; head < layout.heads; head += together) {
    const uint64_t begin = sequence * layout.sequence_stride + first * layout.token_stride + head * layout.head_stride;
    const uint64_t values = (count - 1) * layout.token_stride + (together - 1) * layout.head_stride + dim;
    KVC_ASSIGN_OR_RETURN(const ByteSpan bytes, source.Get(begin * width, values * width, scratch));
    for (uint64_t own = 0; own < together; ++own) {
      for (size_t token = 0; token < count; ++token) {
        const size_t at = own * layout.head_stride + token * layout.token_stride;
        float* const row = &rows[((head + own) * count + token) * dim];
        bool finite = true;
        for (size_t i = 0; i < dim; ++i) {
          row[i] = LoadAsF32(dtype, bytes.data(), at + i);
          finite &= std::isfinite(row[i]);
        }
        if (!finite) {
          return absl::InvalidArgumentError(absl::StrFormat("NaN or infinity in sequence %d, token %d, head %d",
                                                            sequence, first + token, head + own));
        }
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace kvcompress
