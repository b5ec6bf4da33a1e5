// Tables of 256 bytes that stay in registers, looked up by permutations, for the target that is being compiled.

#if defined(KVCOMPRESS_SIMD_SYMBOLS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVCOMPRESS_SIMD_SYMBOLS_INL_H_
#undef KVCOMPRESS_SIMD_SYMBOLS_INL_H_
#else
#define KVCOMPRESS_SIMD_SYMBOLS_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

#include "core/simd/half-inl.h"

#if KVC_TARGET_AVX512

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {

// 64 symbols, of which table[symbol] is looked up. Where the results are unpacked with others, unpacklo gives those of
// the first 32 symbols and unpackhi those of the other 32.
struct Symbols {
  __m512i bytes;
  __mmask64 bit6, bit7, both;

  KVC_VBMI explicit HWY_INLINE Symbols(const uint8_t* from)
      : bytes(_mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), _mm512_loadu_si512(from))),
        bit6(_mm512_test_epi8_mask(bytes, _mm512_set1_epi8(0x40))),
        bit7(_mm512_movepi8_mask(bytes)),
        both(_kand_mask64(bit6, bit7)) {}

  KVC_VBMI HWY_INLINE __m512i LookUp(const uint8_t* table) const {
    __m512i found = _mm512_permutexvar_epi8(bytes, _mm512_load_si512(table));
    found = _mm512_mask_permutexvar_epi8(found, bit6, bytes, _mm512_load_si512(table + 64));
    found = _mm512_mask_permutexvar_epi8(found, bit7, bytes, _mm512_load_si512(table + 128));
    return _mm512_mask_permutexvar_epi8(found, both, bytes, _mm512_load_si512(table + 192));
  }
};

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVC_TARGET_AVX512

#endif  // per-target include guard
