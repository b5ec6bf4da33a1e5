// Steps of range asymmetric numeral systems (rans.h) in vectors of states, for the target that is being compiled: those
// that permute lanes by a table.

#if defined(KVCOMPRESS_SIMD_RANS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVCOMPRESS_SIMD_RANS_INL_H_
#undef KVCOMPRESS_SIMD_RANS_INL_H_
#else
#define KVCOMPRESS_SIMD_RANS_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "core/simd/half-inl.h"
#include "core/simd/rans.h"

#undef KVC_TARGET_RANS
#define KVC_TARGET_RANS \
  (KVC_TARGET_AVX512 || HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_NEON)

#if KVC_TARGET_RANS

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {

using DU16 = hn::Rebind<uint16_t, DU>;
using DU8 = hn::Rebind<uint8_t, DU>;
using VI = hn::Vec<DI>;

// Of a function that is always made a part of its caller.
#undef KVC_WITHIN
#define KVC_WITHIN HWY_ATTR __attribute__((always_inline))

// Calls body(i) for i from 0 to kCount - 1, as constants: arrays with these indices can stay in registers.
template <size_t kCount, class Body>
HWY_INLINE void Unrolled(Body body) {
  const auto each = [&]<size_t... i>(std::index_sequence<i...>) KVC_WITHIN {
    (body(std::integral_constant<size_t, i>()), ...);
  };
  each(std::make_index_sequence<kCount>());
}

// entry_of(lane) for each lane. Loads of a lane each are twice as fast as a gather on Zen 5, and no slower elsewhere.
template <class EntryOf>
HWY_INLINE VI LookUp(EntryOf entry_of) {
  const auto entry = [&](size_t lane) HWY_ATTR { return static_cast<int>(entry_of(lane)); };
#if HWY_TARGET == HWY_NEON
  return VI{int32x4_t{entry(0), entry(1), entry(2), entry(3)}};
#else
  const auto four = [&](size_t lane) HWY_ATTR {
    const __m128i lower = _mm_insert_epi32(_mm_cvtsi32_si128(entry(lane)), entry(lane + 1), 1);
    const __m128i upper = _mm_insert_epi32(_mm_cvtsi32_si128(entry(lane + 2)), entry(lane + 3), 1);
    return _mm_unpacklo_epi64(lower, upper);
  };
#if HWY_TARGET == HWY_SSE4
  return VI{four(0)};
#else
  const auto eight = [&](size_t lane) HWY_ATTR { return _mm256_set_m128i(four(lane + 4), four(lane)); };
#if KVC_TARGET_AVX512
  return VI{_mm512_inserti64x4(_mm512_castsi256_si512(eight(0)), eight(8), 1)};
#else
  return VI{eight(0)};
#endif
#endif
#endif
}

#if KVC_TARGET_AVX512
// The mask of all lanes, for gathers. Where compilers know that it is one, they leave open which register a gather
// merges with, and it waits for what that held before.
HWY_INLINE __mmask16 AllLanes() {
  __mmask16 all = 0xffff;
  asm("" : "+Yk"(all));
  return all;
}

// table[index] for each lane.
HWY_INLINE VI Gather(const uint32_t* table, VI index) {
  return VI{_mm512_mask_i32gather_epi32(_mm512_setzero_si512(), AllLanes(), index.raw, table, 4)};
}
// The numbers at these bytes after `bytes`.
HWY_INLINE VI GatherAt(const void* bytes, VI at) {
  return VI{_mm512_mask_i32gather_epi32(_mm512_setzero_si512(), AllLanes(), at.raw, bytes, 1)};
}
#endif

// A mask as bits.
HWY_INLINE unsigned BitsOf(hn::Mask<DI> mask) {
#if KVC_TARGET_AVX512
  return mask.raw;
#elif HWY_TARGET == HWY_AVX2
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(mask.raw)));
#elif HWY_TARGET == HWY_SSE4
  return static_cast<unsigned>(_mm_movemask_ps(_mm_castsi128_ps(mask.raw)));
#else
  return vaddvq_u32(vandq_u32(mask.raw, uint32x4_t{1, 2, 4, 8}));
#endif
}

#if KVC_TARGET_AVX512

// The lanes of `bits`, one after the other; what follows them is rubbish.
HWY_INLINE VI PackLanes(VI v, unsigned bits) {
  return VI{_mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), v.raw)};
}
// The inverse; lanes that are not in `bits` are rubbish.
HWY_INLINE VI SpreadLanes(VI v, unsigned bits) {
  return VI{_mm512_maskz_expand_epi32(static_cast<__mmask16>(bits), v.raw)};
}

#else

// What moves at once: a lane, or a byte of one.
constexpr size_t kParts = kLanes == 8 ? 1 : sizeof(int32_t);

// For each set of lanes the permutations that pack them and that spread them.
struct Permutations {
  HWY_ALIGN uint8_t pack[size_t{1} << kLanes][kLanes * kParts];
  HWY_ALIGN uint8_t spread[size_t{1} << kLanes][kLanes * kParts];
};
constexpr Permutations MakePermutations() {
  Permutations made = {};
  for (unsigned bits = 0; bits < 1u << kLanes; ++bits) {
    size_t packed = 0;
    for (size_t lane = 0; lane < kLanes; ++lane) {
      if ((bits >> lane & 1) == 0) continue;
      for (size_t part = 0; part < kParts; ++part) {
        made.spread[bits][lane * kParts + part] = static_cast<uint8_t>(packed * kParts + part);
        made.pack[bits][packed * kParts + part] = static_cast<uint8_t>(lane * kParts + part);
      }
      ++packed;
    }
  }
  return made;
}
constexpr Permutations kPermutations = MakePermutations();

HWY_INLINE VI Permute(VI v, const uint8_t* from) {
#if HWY_TARGET == HWY_AVX2
  return VI{_mm256_permutevar8x32_epi32(v.raw, hn::PromoteTo(DI(), LoadAt(DU8(), from)).raw)};
#else
  return hn::TableLookupBytes(v, LoadAt(DI(), from));
#endif
}
HWY_INLINE VI PackLanes(VI v, unsigned bits) { return Permute(v, kPermutations.pack[bits]); }
HWY_INLINE VI SpreadLanes(VI v, unsigned bits) { return Permute(v, kPermutations.spread[bits]); }

#endif

// Those of the states `x` that are `full` give their lower half away, to `out`, which has room for a vector of words.
// Returns their number.
HWY_INLINE size_t GiveWords(VI& x, hn::Mask<DI> full, uint8_t* out) {
  const DI di;
  const unsigned bits = BitsOf(full);
#if KVC_TARGET_AVX512
  StoreAt(hn::Vec<DU16>{_mm512_cvtepi32_epi16(PackLanes(x, bits).raw)}, DU16(), out);
#else
  const VI words = PackLanes(hn::And(x, hn::Set(di, 0xffff)), bits);
  StoreAt(hn::DemoteTo(DU16(), words), DU16(), out);
#endif
  x = hn::IfThenElse(full, hn::ShiftRight<16>(x), x);
  return hwy::PopCount(bits);
}

// As integers, of numbers that have one of 32 bits.
HWY_INLINE VI Truncate(VF v) {
#if KVC_TARGET_AVX512
  return VI{_mm512_cvttps_epi32(v.raw)};
#elif HWY_TARGET == HWY_AVX2
  return VI{_mm256_cvttps_epi32(v.raw)};
#elif HWY_TARGET == HWY_SSE4
  return VI{_mm_cvttps_epi32(v.raw)};
#else
  return hn::ConvertTo(DI(), v);
#endif
}

// 1 / f of integers f, with an error of less than 2^-22 of it.
HWY_INLINE VF Reciprocal(VF f) {
  const VF one = hn::Set(DF(), 1);
#if KVC_TARGET_AVX512
  // Of 14 bits, and Newton's step: a third of a division's time.
  const VF about{_mm512_rcp14_ps(f.raw)};
  return hn::MulAdd(about, hn::NegMulAdd(f, about, one), about);
#else
  return hn::Div(one, f);
#endif
}

// Of symbols whose entries of a RansSymbolTable are `entry`: makes room in the states for them. The words that leave go
// to `out`, which has room for a vector of them. Returns their number.
HWY_INLINE size_t MakeRoom(VI entry, VI& state, uint8_t* out) {
  const DI di;
  const VI less_one = hn::Sub(hn::And(entry, hn::Set(di, 0xffff)), hn::Set(di, 1));
  return GiveWords(state, hn::Gt(hn::ShiftRight<19>(state), less_one), out);
}

// What AddEntries needs of the symbols alone.
HWY_INLINE VF ReciprocalOf(VI entry) { return Reciprocal(hn::ConvertTo(DF(), hn::And(entry, hn::Set(DI(), 0xffff)))); }

// Adds the symbols to the states, which have room for them.
HWY_INLINE void AddEntries(VI entry, VF reciprocal, VI& state) {
  const DF df;
  const DI di;
  const VI frequency = hn::And(entry, hn::Set(di, 0xffff));
  // The quotient is below 2^19, and what is rounded moves it by less than 1/4: with that taken off it is right or one
  // too small.
  const VI quotient = Truncate(hn::MulSub(hn::ConvertTo(df, state), reciprocal, hn::Set(df, 0.25f)));
#if KVC_TARGET_AVX512
  // The rest is less than twice the frequency: its lower 16 bits are all, and products of 16 bits take half the time.
  const __m512i product = _mm512_mullo_epi16(quotient.raw, frequency.raw);
  const VI rest{_mm512_maskz_sub_epi16(0x55555555, state.raw, product)};
#else
  const VI rest = hn::Sub(state, hn::Mul(quotient, frequency));
#endif
  const VI next = hn::Add(hn::Add(hn::ShiftLeft<kRansBits>(quotient), rest), hn::ShiftRight<16>(entry));
  const VI one_more = hn::Sub(hn::Set(di, kRansSlots), frequency);
  state = hn::Add(next, hn::IfThenElseZero(hn::Gt(rest, hn::Sub(frequency, hn::Set(di, 1))), one_more));
}

// Encodes a symbol in each lane: both of them.
HWY_INLINE size_t EncodeEntries(VI entry, VI& state, uint8_t* out) {
  const size_t words = MakeRoom(entry, state, out);
  AddEntries(entry, ReciprocalOf(entry), state);
  return words;
}

// Takes a symbol from each state, of which `entry` is the entry of a RansSlotTable. Returns which states need a word,
// as bits.
HWY_INLINE unsigned DecodeEntries(VI entry, VI& state) {
  const DI di;
  const VI low12 = hn::Set(di, 0xfff);
  // The product is what takes longest: with the frequency less one it need not wait for an addition.
  const VI less_one = hn::And(hn::ShiftRight<12>(entry), low12);
  const VI high = hn::ShiftRight<kRansBits>(state);
  state = hn::Add(hn::Mul(less_one, high), hn::Add(hn::And(entry, low12), high));
  return BitsOf(hn::Lt(state, hn::Set(di, kRansLow)));
}

#if HWY_TARGET == HWY_AVX2
// For each set of lanes, which of the words that lie in order go to which lane; the other lanes get 0.
struct WordShuffles {
  HWY_ALIGN uint8_t from[size_t{1} << kLanes][2 * kLanes];
};
constexpr WordShuffles MakeWordShuffles() {
  WordShuffles made = {};
  for (unsigned bits = 0; bits < 1u << kLanes; ++bits) {
    uint8_t next = 0;
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const bool takes = (bits >> lane & 1) != 0;
      for (size_t byte = 0; byte < 2; ++byte) made.from[bits][2 * lane + byte] = takes ? next++ : 0x80;
    }
  }
  return made;
}
constexpr WordShuffles kWordShuffles = MakeWordShuffles();
#endif

// Gives the lanes of `bits`, which are those that need one, the words at `words`, in order. Reads a whole vector.
HWY_INLINE void Refill(VI& state, unsigned bits, const uint8_t* words) {
  const DI di;
  const auto is_low = hn::Lt(state, hn::Set(di, kRansLow));
#if HWY_TARGET == HWY_AVX2
  const __m128i own = _mm_shuffle_epi8(LoadAt(DU16(), words).raw, LoadAt(DU16(), kWordShuffles.from[bits]).raw);
  const VI shift = hn::And(hn::VecFromMask(di, is_low), hn::Set(di, 16));
  state = hn::Or(VI{_mm256_sllv_epi32(state.raw, shift.raw)}, VI{_mm256_cvtepu16_epi32(own)});
#else
  const VI word = SpreadLanes(hn::PromoteTo(di, LoadAt(DU16(), words)), bits);
  state = hn::IfThenElse(is_low, hn::Or(hn::ShiftLeft<16>(state), word), state);
#endif
}

// Refill for lanes in falling order, with the words that end at `end`: which these are does not depend on how many are
// taken, so that few vectors do not wait for it. Reads a whole vector.
HWY_INLINE void RefillFalling(VI& state, unsigned bits, const uint8_t* end) {
  const DI di;
  const auto loaded = LoadAt(DU16(), end - 2 * kLanes);
#if KVC_TARGET_AVX512
  const __m512i from = hn::Reverse(di, hn::Iota(di, 0)).raw;  // the word of each lane
  const VI words{_mm512_maskz_permutexvar_epi16(0x55555555, from, _mm512_castsi256_si512(loaded.raw))};
#else
  const VI words = hn::Reverse(di, hn::PromoteTo(di, loaded));
#endif
  const VI filled = hn::Or(hn::ShiftLeft<16>(state), SpreadLanes(words, bits));
  state = hn::IfThenElse(hn::Lt(state, hn::Set(di, kRansLow)), filled, state);
}

// The lowest `bits` bits of each lane.
HWY_INLINE VI LowestBits(VI value, VI bits) {
  const DI di;
  return hn::And(value, hn::Sub(hn::Shl(hn::Set(di, 1), bits), hn::Set(di, 1)));
}

// Encodes the lowest `bits` bits of `value` in each lane; returns how many words left.
HWY_INLINE size_t EncodeBits(VI value, VI bits, VI& state, uint8_t* out) {
  const DI di;
  const VI above = hn::Shr(state, hn::Sub(hn::Set(di, 31), bits));
  const size_t words = GiveWords(state, hn::Gt(above, hn::Zero(di)), out);
  state = hn::Or(hn::Shl(state, bits), LowestBits(value, bits));
  return words;
}

// Appends bits of each state, in falling order of lanes, to `value`; the words that are left end at *end.
HWY_INLINE void DecodeBits(VI bits, VI& state, const uint8_t** end, VI& value) {
  value = hn::Or(hn::Shl(value, bits), LowestBits(state, bits));
  state = hn::Shr(state, bits);
  const unsigned empty = BitsOf(hn::Lt(state, hn::Set(DI(), kRansLow)));
  RefillFalling(state, empty, *end);
  *end -= 2 * hwy::PopCount(empty);
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVC_TARGET_RANS

#endif  // per-target include guard
