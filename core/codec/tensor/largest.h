#pragma once

#include "absl/status/status.h"
#include "core/base/buffer.h"
#include "core/base/bytes.h"
#include "core/base/dtype.h"

namespace kvcompress {

// Marks the `wanted` values of largest magnitude, of equal ones the first, in a mask (core/simd/kept_values.h) of whole
// words of 8 bytes.
absl::Status MarkLargest(DType dtype, ByteSpan values, size_t wanted, Buffer& mask);

}  // namespace kvcompress
