// Encoding for rans.h with states in halves of 16 bits, of which a vector holds 32, for the target that is being
// compiled: nothing is gathered, so it needs permutations of bytes, and nothing is converted to float.

#if defined(KVCOMPRESS_SIMD_RANS_HALVES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVCOMPRESS_SIMD_RANS_HALVES_INL_H_
#undef KVCOMPRESS_SIMD_RANS_HALVES_INL_H_
#else
#define KVCOMPRESS_SIMD_RANS_HALVES_INL_H_
#endif

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "core/simd/rans-inl.h"
#include "core/simd/rans_group.h"
#include "core/simd/symbols-inl.h"

#if KVC_TARGET_AVX512

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {

// A state x < 2^19 f is divided by its symbol's frequency f, a number of s bits, in two steps that multiply by
// M = ceil(2^(s+15) / f) - 1, which has 16 bits:
//   Q = floor(floor(x / 2^(s+3)) M / 2^16), which is about x / (16 f), and R = x - 16 f Q;
//   d = floor(R / f) = floor((R + 1) M / 2^(s+15)).
// The quotient is then 16 Q + d. With D = 2^(s+15) - f M, R is at most floor(x / 2^(s+3)) D / 2^12 + 2^(s+3) + 16 f -
// 1; it must have 16 bits, and d is right where (R + 1) D <= 2^(s+15).
constexpr uint32_t kDivisors = 2048;

// M for each f, or 0 where the above does not hold: nowhere up to 947, and in one of 17 from there to
// 1536.
constexpr std::array<uint16_t, kDivisors> MakeMultipliers() {
  std::array<uint16_t, kDivisors> made = {};
  for (uint64_t f = 1; f < kDivisors; ++f) {
    const int bits = std::bit_width(f);
    const uint64_t unit = uint64_t{1} << (bits + 15);
    const uint64_t multiplier = (unit + f - 1) / f - 1;
    const uint64_t deficit = unit - f * multiplier;
    const uint64_t most = (((f << 19) - 1) >> (bits + 3)) * deficit / 4096 + (uint64_t{8} << bits) + 16 * f - 1;
    if (most <= 0xffff && (most + 1) * deficit <= unit) made[f] = static_cast<uint16_t>(multiplier);
  }
  return made;
}
constexpr std::array<uint16_t, kDivisors> kMultipliers = MakeMultipliers();

// For each symbol 16 f, 16 times its first slot + (s - 1), and M: the lower bytes of all symbols, then the upper ones.
struct HalvesTable {
  static constexpr size_t kNumbers = 3;
  HWY_ALIGN uint8_t bytes[kNumbers][2][256];

  // False where a frequency cannot be divided by.
  bool Make(const RansSymbolTable& symbols) {
    bool exact = true;
    for (size_t s = 0; s < symbols.size(); ++s) {
      const uint32_t f = symbols[s] & 0xffff;
      const uint32_t multiplier = f < kDivisors ? kMultipliers[f] : 0;
      exact &= f == 0 || multiplier != 0;
      const uint32_t shift = static_cast<uint32_t>(std::bit_width(f)) - 1;
      const uint32_t numbers[kNumbers] = {16 * f, 16 * (symbols[s] >> 16) + (shift & 15), multiplier};
      for (size_t i = 0; i < kNumbers; ++i) {
        bytes[i][0][s] = static_cast<uint8_t>(numbers[i]);
        bytes[i][1][s] = static_cast<uint8_t>(numbers[i] >> 8);
      }
    }
    return exact;
  }
};

// 32 states, their upper and their lower halves.
struct HalvesOfStates {
  __m512i upper, lower;

  // Encodes a symbol in each, of which these are the numbers in a HalvesTable. Returns how many words left, to `out`.
  KVC_VBMI HWY_INLINE size_t Encode(__m512i f16, __m512i first_and_shift, __m512i multiplier, uint8_t* out) {
    const __mmask32 full = _mm512_cmpge_epu16_mask(_mm512_add_epi16(upper, upper), f16);
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi16(full, lower));
    lower = _mm512_mask_mov_epi16(lower, full, upper);
    upper = _mm512_mask_sub_epi16(upper, full, upper, upper);

    const __m512i shift_by_4_more = _mm512_add_epi16(first_and_shift, _mm512_set1_epi16(4));
    const __m512i shifted = _mm512_shrdv_epi16(lower, upper, shift_by_4_more);
    const __m512i quotient = _mm512_mulhi_epu16(shifted, multiplier);
    const __m512i rest = _mm512_sub_epi16(lower, _mm512_mullo_epi16(quotient, f16));
    const __m512i product = _mm512_mulhi_epu16(_mm512_add_epi16(rest, _mm512_set1_epi16(1)), multiplier);
    const __m512i digit = _mm512_shrdv_epi16(product, _mm512_setzero_si512(), first_and_shift);
    // x becomes 2^12 (16 Q + d) + (R - d f) + the first slot.
    const __m512i others = _mm512_srli_epi16(_mm512_sub_epi16(_mm512_setzero_si512(), f16), 4);  // 2^12 - f
    const __m512i first = _mm512_srli_epi16(first_and_shift, 4);
    lower = _mm512_add_epi16(_mm512_add_epi16(rest, first), _mm512_mullo_epi16(digit, others));
    upper = _mm512_add_epi16(quotient, _mm512_srli_epi16(digit, 4));
    return hwy::PopCount(full);
  }
};

// EncodeWideGroups of symbols that `table` is for.
KVC_VBMI inline bool EncodeHalves(const HalvesTable& table, internal::RansEncoder& encoder, const uint8_t* raw,
                                  size_t groups) {
  constexpr size_t kHalf = kRansWideLanes / 2;
  HWY_ALIGN uint16_t halves[2][kRansWideLanes];
  for (size_t i = 0; i < kRansWideLanes; ++i) {
    halves[0][i] = static_cast<uint16_t>(encoder.states[i]);
    halves[1][i] = static_cast<uint16_t>(encoder.states[i] >> 16);
  }
  HalvesOfStates front = {_mm512_load_si512(halves[1]), _mm512_load_si512(halves[0])};
  HalvesOfStates back = {_mm512_load_si512(halves[1] + kHalf), _mm512_load_si512(halves[0] + kHalf)};
  uint8_t* out = encoder.out + encoder.size;
  const uint8_t* const end = encoder.out + encoder.capacity;
  while (groups-- > 0) {
    if (static_cast<size_t>(end - out) < internal::RansRoom(kRansWideLanes)) return false;
    const Symbols symbols(raw + groups * kRansWideLanes);
    __m512i front_numbers[HalvesTable::kNumbers], back_numbers[HalvesTable::kNumbers];
#pragma GCC unroll 3
    for (size_t i = 0; i < HalvesTable::kNumbers; ++i) {
      const __m512i low = symbols.LookUp(table.bytes[i][0]);
      const __m512i high = symbols.LookUp(table.bytes[i][1]);
      front_numbers[i] = _mm512_unpacklo_epi8(low, high);
      back_numbers[i] = _mm512_unpackhi_epi8(low, high);
    }
    out += 2 * front.Encode(front_numbers[0], front_numbers[1], front_numbers[2], out);
    out += 2 * back.Encode(back_numbers[0], back_numbers[1], back_numbers[2], out);
  }
  _mm512_store_si512(halves[1], front.upper);
  _mm512_store_si512(halves[0], front.lower);
  _mm512_store_si512(halves[1] + kHalf, back.upper);
  _mm512_store_si512(halves[0] + kHalf, back.lower);
  for (size_t i = 0; i < kRansWideLanes; ++i) {
    encoder.states[i] = uint32_t{halves[1][i]} << 16 | halves[0][i];
  }
  encoder.size = static_cast<size_t>(out - encoder.out);
  return true;
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVC_TARGET_AVX512

#endif  // per-target include guard
