#pragma once

#include <cstring>

#include "core/simd/token_sums.h"

namespace kvcompress::testing {

inline bool SameBits(const TokenStretch& a, const TokenStretch& b) {
  const size_t channels = a.channels.size();
  if (a.first != b.first || a.count != b.count || channels != b.channels.size()) return false;
  if (a.channels.error_deviations() != b.channels.error_deviations()) return false;
  for (const MomentPlane plane : {kCount, kMean, kDeviations, kErrorMean}) {
    if (channels == 0) continue;
    if (std::memcmp(a.channels.plane(plane), b.channels.plane(plane), channels * sizeof(double)) != 0) return false;
  }
  return true;
}

inline bool SameBits(const ErrorSums& a, const ErrorSums& b) { return std::memcmp(&a, &b, sizeof(ErrorSums)) == 0; }

inline bool SameBits(const TokenSums& a, const TokenSums& b) {
  return SameBits(a.closed, b.closed) && SameBits(a.head, b.head) && SameBits(a.tail, b.tail);
}

}  // namespace kvcompress::testing
