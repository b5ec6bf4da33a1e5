#include "kvcompress/simd/group_quant.h"

namespace kvcompress::simd {
bool Quantize(const GroupQuantFormat& format, const void* values, size_t count, void* scales, void* codes,
              ErrorSums* sums) {
  return scalar::Quantize(format, values, count, scales, codes, sums);
}
void Dequantize(const GroupQuantFormat& format, const void* scales, const void* codes, size_t count, void* values) {
  scalar::Dequantize(format, scales, codes, count, values);
}
const char* TargetName() { return "SCALAR"; }
}  // namespace kvcompress::simd
