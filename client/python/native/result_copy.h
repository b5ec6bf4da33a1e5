#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/base/bytes.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace kvcompress {

// From so many bytes on, a call's results push their own first bytes out of a core's caches before anybody reads them.
inline constexpr size_t kLargeResultBytes = size_t{32} << 20;

// Copies a part of what a call gives, `result_bytes` in all. That of a large one is written past the caches: its memory
// need not be read before, which is a third of what a copy moves.
inline void CopyToResult(std::byte* to, ByteSpan from, size_t result_bytes) {
#if defined(__SSE2__)
  if (result_bytes >= kLargeResultBytes) {
    constexpr size_t kLine = 64;
    const size_t before = std::min(from.size(), -reinterpret_cast<uintptr_t>(to) % kLine);
    std::memcpy(to, from.data(), before);
    size_t at = before;
    for (; from.size() - at >= kLine; at += kLine) {
      const auto* source = reinterpret_cast<const __m128i*>(from.data() + at);
      auto* target = reinterpret_cast<__m128i*>(to + at);
      const __m128i a = _mm_loadu_si128(source);
      const __m128i b = _mm_loadu_si128(source + 1);
      const __m128i c = _mm_loadu_si128(source + 2);
      const __m128i d = _mm_loadu_si128(source + 3);
      _mm_stream_si128(target, a);
      _mm_stream_si128(target + 1, b);
      _mm_stream_si128(target + 2, c);
      _mm_stream_si128(target + 3, d);
    }
    _mm_sfence();  // other threads see them as they do other writes
    std::memcpy(to + at, from.data() + at, from.size() - at);
    return;
  }
#endif
  std::memcpy(to, from.data(), from.size());
}

}  // namespace kvcompress
