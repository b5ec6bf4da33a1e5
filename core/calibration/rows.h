#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/byte_source.h"
#include "core/base/tensor.h"

namespace kvcompress {

// How a tensor of keys or values holds its rows, which are the head_dim values of a token and head: by the roles of its
// axes, in any order but for head_dim, which is the last. Strides are in values.
struct RowLayout {
  uint64_t sequences = 1;  // the extent of its batch axis
  uint64_t tokens = 0;
  uint64_t heads = 1;
  uint64_t head_dim = 0;
  uint64_t sequence_stride = 0;
  uint64_t token_stride = 0;
  uint64_t head_stride = 0;
};

// INVALID_ARGUMENT for an opaque dtype, for axes without one seq and a head_dim at the end, for two of one role, and
// for an axis of another role with more than one entry: the positions of such tokens are not known.
absl::StatusOr<RowLayout> RowLayoutOf(const TensorDesc& tensor);

// Reads tokens first .. first + count - 1 of a sequence of `source`, the tensor's values, into `rows`: [heads, count,
// head_dim]. INVALID_ARGUMENT for values that are not finite; errors of reading are passed on.
absl::Status ReadRows(const ByteSource& source, DType dtype, const RowLayout& layout, uint64_t sequence, uint64_t first,
                      size_t count, std::vector<std::byte>& scratch, std::vector<float>& rows);

}  // namespace kvcompress
