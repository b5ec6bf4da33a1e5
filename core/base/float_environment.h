#pragma once

#include <cfenv>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace kvcompress {

// While it lives, this thread rounds to nearest and computes with subnormal values, as codecs need to make the same
// bytes everywhere: a host program, and threads that it has started, may have it otherwise (torch.set_flush_denormal).
// That goes for what the C library computes, too, whose std::strtod asks the x87 how to round.
class UsualFloatEnvironment {
 public:
#if defined(__x86_64__)
  UsualFloatEnvironment() : kept_(_mm_getcsr()) {
    if ((kept_ & kControl) != kUsual) _mm_setcsr((kept_ & ~kControl) | kUsual);
    asm volatile("fnstcw %0" : "=m"(kept_x87_));
    if ((kept_x87_ & kX87Rounding) != 0) SetX87(kept_x87_ & ~kX87Rounding);
  }
  ~UsualFloatEnvironment() {
    if ((kept_ & kControl) != kUsual) _mm_setcsr(kept_);
    if ((kept_x87_ & kX87Rounding) != 0) SetX87(kept_x87_);
  }

 private:
  // All of MXCSR but the flags of what has happened. Usual are masked exceptions and nothing else.
  static constexpr unsigned kControl = 0xffc0, kUsual = 0x1f80;
  // Of the x87's control word; zero is to nearest.
  static constexpr unsigned kX87Rounding = 0x0c00;

  static void SetX87(unsigned control) {
    const auto word = static_cast<uint16_t>(control);
    asm volatile("fldcw %0" : : "m"(word));
  }

  const unsigned kept_;
  uint16_t kept_x87_ = 0;
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
