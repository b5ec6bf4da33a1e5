#pragma once

#include <cfenv>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace kvcompress {

// While it lives, this thread rounds to nearest and computes with subnormal values, as codecs need to make the same
// bytes everywhere: a host program, and threads that it has started, may have it otherwise (torch.set_flush_denormal).
class UsualFloatEnvironment {
 public:
#if defined(__x86_64__)
  UsualFloatEnvironment() : kept_(_mm_getcsr()) {
    if ((kept_ & kControl) != kUsual) _mm_setcsr((kept_ & ~kControl) | kUsual);
  }
  ~UsualFloatEnvironment() {
    if ((kept_ & kControl) != kUsual) _mm_setcsr(kept_);
  }

 private:
  // All of MXCSR but the flags of what has happened. Usual are masked exceptions and nothing else.
  static constexpr unsigned kControl = 0xffc0, kUsual = 0x1f80;

  const unsigned kept_;
#else
  UsualFloatEnvironment() {
    std::fegetenv(&kept_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~UsualFloatEnvironment() { std::fesetenv(&kept_); }

 private:
  std::fenv_t kept_;
#endif

 public:
  UsualFloatEnvironment(const UsualFloatEnvironment&) = delete;
  UsualFloatEnvironment& operator=(const UsualFloatEnvironment&) = delete;
};

}  // namespace kvcompress
