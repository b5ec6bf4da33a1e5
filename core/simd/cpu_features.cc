#include "core/simd/cpu_features.h"

#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace kvcompress::simd {
namespace {

bool AskCpu() {
#if defined(__x86_64__)
  constexpr unsigned kFp16 = 1u << 23;  // of EDX
  unsigned a, b, c, d;
  if (__get_cpuid(0, &a, &b, &c, &d) == 0 || b != signature_INTEL_ebx) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kFp16) != 0;
#else
  return false;
#endif
}

bool AskForVbmi() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512vbmi") != 0 && __builtin_cpu_supports("avx512vbmi2") != 0;
#else
  return false;
#endif
}

std::atomic<bool>& Permutes() {
  static std::atomic<bool> permutes = AskForVbmi();
  return permutes;
}

std::atomic<bool>& Well() {
  static std::atomic<bool> well = AskCpu();
  return well;
}

}  // namespace

bool GathersWell() { return Well().load(std::memory_order_relaxed); }
void SetGathersWellForTest(bool well) { Well() = well; }
bool PermutesBytes() { return Permutes().load(std::memory_order_relaxed); }
void SetPermutesBytesForTest(bool permutes) { Permutes() = permutes; }

}  // namespace kvcompress::simd
