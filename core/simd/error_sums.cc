#include "kvcompress/simd/error_sums.h"

namespace kvcompress::simd {
void MeasureErrors(DType dtype, const void* original, const void* decoded, size_t count, ErrorSums& sums) {
  scalar::MeasureErrors(dtype, original, decoded, count, sums);
}
}  // namespace kvcompress::simd
