#pragma once

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace kvcompress::simd {

// While one lives, this thread computes with 0 in place of subnormal numbers on x86, where each vector with one of them
// takes a hundred times as long. It reaches what is called through a pointer: the compiler does not know of it.
class SubnormalsAreZero {
 public:
#if defined(__SSE__)
  SubnormalsAreZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | kOperands | kResults); }
  ~SubnormalsAreZero() { _mm_setcsr(before_); }
#else
  SubnormalsAreZero() {}   // NOLINT: as it is elsewhere, so that none is unused
  ~SubnormalsAreZero() {}  // NOLINT
#endif
  SubnormalsAreZero(const SubnormalsAreZero&) = delete;
  SubnormalsAreZero& operator=(const SubnormalsAreZero&) = delete;

 private:
#if defined(__SSE__)
  static constexpr unsigned kOperands = 0x0040, kResults = 0x8000;
  const unsigned before_;
#endif
};

}  // namespace kvcompress::simd
