#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "core/simd/rans.h"

// Steps of rans.h without vectors: those of several lanes stand side by side, so that each hides the others' latency.
// Which states give or take a word is random, so nothing here branches on it.
namespace kvcompress::simd::internal {

// Calls `body` for each lane in rising or falling order. Up to 8 have code of their own, so that their states stay in
// registers.
template <size_t kLanes, class Body>
[[gnu::always_inline]] inline void ForLanesUp(Body body) {
  constexpr size_t kAtOnce = std::min<size_t>(kLanes, 8);
  for (size_t first = 0; first < kLanes; first += kAtOnce) {
    [&]<size_t... kLane>(std::index_sequence<kLane...>) { (body(first + kLane), ...); }
    (std::make_index_sequence<kAtOnce>());
  }
}
template <size_t kLanes, class Body>
[[gnu::always_inline]] inline void ForLanesDown(Body body) {
  ForLanesUp<kLanes>([&](size_t lane) { body(kLanes - 1 - lane); });
}

// 2^43 / f, rounded up, of each frequency f. A state x < 2^19 f times this is less than 2^43 too large, so its upper
// part is x / f, rounded down.
inline constexpr int kReciprocalBits = 43;
constexpr std::array<uint64_t, kRansSlots + 1> MakeReciprocals() {
  std::array<uint64_t, kRansSlots + 1> made = {};
  for (uint64_t f = 1; f <= kRansSlots; ++f) made[f] = ((uint64_t{1} << kReciprocalBits) + f - 1) / f;
  return made;
}
inline constexpr std::array<uint64_t, kRansSlots + 1> kReciprocals = MakeReciprocals();

// Writes words from `end` on, also of states that give none: there has to be room for one of each.
struct WordWriter {
  uint8_t* end;

  void Push(bool is_full, uint32_t& x) {
    const auto word = static_cast<uint16_t>(x);
    std::memcpy(end, &word, 2);
    end += 2 * size_t{is_full};
    x >>= 16 * uint32_t{is_full};
  }
  // `entry` is one of a RansSymbolTable.
  void EncodeSymbol(uint32_t entry, uint32_t& x) {
    const uint32_t frequency = entry & 0xffff;
    Push(x >> 19 >= frequency, x);
    const auto quotient = static_cast<uint32_t>(x * kReciprocals[frequency] >> kReciprocalBits);
    x += quotient * (kRansSlots - frequency) + (entry >> 16);
  }
  void EncodeBits(int32_t value, int32_t bits, uint32_t& x) {
    Push(x >> (31 - bits) != 0, x);
    x = x << bits | (static_cast<uint32_t>(value) & ((1u << bits) - 1));
  }
};

// Reads words that end at `end`, also of states that need none: there has to be one for each.
struct WordReader {
  const uint8_t* end;

  // Gives the state a word if it needs one.
  void Refill(uint32_t& x) {
    uint16_t word;
    std::memcpy(&word, end - 2, 2);
    const uint32_t filled = x << 16 | word;
    const uint8_t* const next = end - 2;
#if defined(__x86_64__)
    // Compilers would branch.
    asm("cmpl %[low], %[x]\n\tcmovb %[filled], %[x]\n\tcmovb %[next], %[end]"
        : [x] "+&r"(x), [end] "+&r"(end)
        : [low] "i"(kRansLow), [filled] "r"(filled), [next] "r"(next)
        : "cc");
#else
    const bool is_low = x < kRansLow;
    x = is_low ? filled : x;
    end = is_low ? next : end;
#endif
  }
  uint8_t DecodeSymbol(const RansSlotTable& slots, uint32_t& x) {
    const uint32_t entry = slots[x % kRansSlots];
    const uint32_t high = x >> kRansBits;
    x = (entry >> 12 & 0xfff) * high + high + (entry & 0xfff);
    Refill(x);
    return static_cast<uint8_t>(entry >> 24);
  }
  void DecodeBits(int32_t bits, uint32_t& x, int32_t& value) {
    value = static_cast<int32_t>((static_cast<uint32_t>(value) << bits) | (x & ((1u << bits) - 1)));
    x >>= bits;
    Refill(x);
  }
};

}  // namespace kvcompress::simd::internal
