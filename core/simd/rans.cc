#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/rans.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/simd/half-inl.h"
#include "core/simd/rans_group.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {

using internal::RansDecoder;
using internal::RansEncoder;

// A body of its own pays for vectors of 8 lanes or more, with permutations of 32-bit lanes; others run the definition.
#if HWY_TARGET == HWY_AVX2 || KVC_TARGET_AVX512
namespace {

using DU16 = hn::Rebind<uint16_t, DU>;
using DU8 = hn::Rebind<uint8_t, DU>;
using VI = hn::Vec<DI>;
constexpr size_t kVectors = kRansWideLanes / kLanes;

// The states of all lanes.
struct States {
  VI lanes[kVectors];

  explicit HWY_INLINE States(const std::array<uint32_t, kRansWideLanes>& from) {
#pragma GCC unroll 8
    for (size_t v = 0; v < kVectors; ++v) lanes[v] = hn::BitCast(DI(), hn::LoadU(DU(), from.data() + v * kLanes));
  }
  HWY_INLINE void StoreTo(std::array<uint32_t, kRansWideLanes>& to) const {
#pragma GCC unroll 8
    for (size_t v = 0; v < kVectors; ++v) hn::StoreU(hn::BitCast(DU(), lanes[v]), DU(), to.data() + v * kLanes);
  }
};

// table[index(lane)] for each lane. Loads of a lane each are twice as fast as a gather on Zen 5, and no slower
// elsewhere.
template <class Index>
HWY_INLINE VI LookUp(const uint32_t* table, Index index) {
  const auto four = [&](size_t lane) HWY_ATTR {
    const auto entry = [&](size_t i) HWY_ATTR { return static_cast<int>(table[index(lane + i)]); };
    __m128i v = _mm_cvtsi32_si128(entry(0));
    v = _mm_insert_epi32(v, entry(1), 1);
    v = _mm_insert_epi32(v, entry(2), 2);
    return _mm_insert_epi32(v, entry(3), 3);
  };
  const auto eight = [&](size_t lane) HWY_ATTR { return _mm256_set_m128i(four(lane + 4), four(lane)); };
#if KVC_TARGET_AVX512
  return VI{_mm512_inserti64x4(_mm512_castsi256_si512(eight(0)), eight(8), 1)};
#else
  return VI{eight(0)};
#endif
}

// A mask as bits.
HWY_INLINE unsigned BitsOf(hn::Mask<DI> mask) {
#if KVC_TARGET_AVX512
  return mask.raw;
#else
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(mask.raw)));
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

// For each set of 8 lanes the permutations that pack them and that spread them.
struct Permutations {
  HWY_ALIGN uint8_t pack[256][8];
  HWY_ALIGN uint8_t spread[256][8];
};
constexpr Permutations MakePermutations() {
  Permutations made = {};
  for (unsigned bits = 0; bits < 256; ++bits) {
    uint8_t packed = 0;
    for (uint8_t lane = 0; lane < 8; ++lane) {
      if ((bits >> lane & 1) == 0) continue;
      made.spread[bits][lane] = packed;
      made.pack[bits][packed++] = lane;
    }
  }
  return made;
}
constexpr Permutations kPermutations = MakePermutations();

HWY_INLINE VI Permute(VI v, const uint8_t* from) {
  return VI{_mm256_permutevar8x32_epi32(v.raw, hn::PromoteTo(DI(), LoadAt(DU8(), from)).raw)};
}
HWY_INLINE VI PackLanes(VI v, unsigned bits) { return Permute(v, kPermutations.pack[bits]); }
HWY_INLINE VI SpreadLanes(VI v, unsigned bits) { return Permute(v, kPermutations.spread[bits]); }

#endif

// Encodes a symbol in each lane; the words that leave go to `out`, which has room for a vector of them. Returns their
// number.
HWY_INLINE size_t EncodeStep(const RansSymbolTable& symbols, const uint8_t* raw, VI& state, uint8_t* out) {
  const DF df;
  const DI di;
  const VI entry = LookUp(symbols.data(), [raw](size_t lane) HWY_ATTR { return raw[lane]; });
  const VI frequency = hn::And(entry, hn::Set(di, 0xffff));
  VI x = state;
  const auto full = hn::Not(hn::Lt(hn::ShiftRight<19>(x), frequency));
  const unsigned full_bits = BitsOf(full);
  const VI words = PackLanes(hn::And(x, hn::Set(di, 0xffff)), full_bits);
  StoreAt(hn::DemoteTo(DU16(), words), DU16(), out);
  x = hn::IfThenElse(full, hn::ShiftRight<16>(x), x);

  // The quotient is below 2^19, and three roundings to 24 bits move it by less than 1/8: with that taken off it is
  // right or one too small.
  const auto ratio = hn::Div(hn::ConvertTo(df, x), hn::ConvertTo(df, frequency));
  const VI quotient = hn::ConvertTo(di, hn::Sub(ratio, hn::Set(df, 0.125f)));
  const VI rest = hn::Sub(x, hn::Mul(quotient, frequency));
  const VI next = hn::Add(hn::Add(hn::ShiftLeft<kRansBits>(quotient), rest), hn::ShiftRight<16>(entry));
  const VI one_more = hn::Sub(hn::Set(di, kRansSlots), frequency);
  const auto small = hn::Not(hn::Lt(rest, frequency));
  state = hn::Add(next, hn::IfThenElseZero(small, one_more));
  return hwy::PopCount(full_bits);
}

// Decodes a symbol in each lane, and returns which states need a word, as bits.
HWY_INLINE unsigned DecodeStep(const RansSlotTable& slots, VI& state, uint8_t* raw) {
  const DI di;
  const DU du;
  HWY_ALIGN int32_t index[kLanes];
  hn::Store(hn::And(state, hn::Set(di, kRansSlots - 1)), di, index);
  const VI entry = LookUp(slots.data(), [&index](size_t lane) HWY_ATTR { return index[lane]; });
  StoreAt(hn::U8FromU32(hn::ShiftRight<24>(hn::BitCast(du, entry))), DU8(), raw);
  const VI low12 = hn::Set(di, 0xfff);
  const VI frequency = hn::Add(hn::And(hn::ShiftRight<12>(entry), low12), hn::Set(di, 1));
  state = hn::Add(hn::Mul(frequency, hn::ShiftRight<kRansBits>(state)), hn::And(entry, low12));
  return BitsOf(hn::Lt(state, hn::Set(di, kRansLow)));
}

// Gives the lanes of `bits`, which are those that need one, the words at `words`, in order. Reads a whole vector.
HWY_INLINE void Refill(VI& state, unsigned bits, const uint8_t* words) {
  const DI di;
  const VI word = SpreadLanes(hn::PromoteTo(di, LoadAt(DU16(), words)), bits);
  const VI filled = hn::Or(hn::ShiftLeft<16>(state), word);
  state = hn::IfThenElse(hn::Lt(state, hn::Set(di, kRansLow)), filled, state);
}

}  // namespace

bool EncodeWideGroups(RansEncoder& encoder, const uint8_t* raw, size_t groups) {
  States states(encoder.states);
  uint8_t* out = encoder.out + encoder.size;
  const uint8_t* const end = encoder.out + encoder.capacity;
  while (groups-- > 0) {
    if (static_cast<size_t>(end - out) < internal::RansRoom(kRansWideLanes)) return false;
#pragma GCC unroll 8
    for (size_t v = 0; v < kVectors; ++v) {
      out += 2 * EncodeStep(encoder.symbols, raw + groups * kRansWideLanes + v * kLanes, states.lanes[v], out);
    }
  }
  states.StoreTo(encoder.states);
  encoder.size = static_cast<size_t>(out - encoder.out);
  return true;
}

// Stops in front of a group that the words that are left might not suffice for.
size_t DecodeWideGroups(RansDecoder& decoder, uint8_t* raw, size_t groups) {
  States states(decoder.states);
  size_t size = decoder.size;
  size_t group = 0;
  for (; group < groups && size >= 2 * kRansWideLanes; ++group) {
    // The highest lanes first, as words are popped: then a vector waits only for those in front of it.
#pragma GCC unroll 8
    for (size_t v = kVectors; v-- > 0;) {
      const unsigned bits = DecodeStep(decoder.slots, states.lanes[v], raw + group * kRansWideLanes + v * kLanes);
      size -= 2 * hwy::PopCount(bits);
      Refill(states.lanes[v], bits, decoder.words + size);  // what it reads past the last word are the states
    }
  }
  states.StoreTo(decoder.states);
  decoder.size = size;
  return group;
}

#else

bool EncodeWideGroups(RansEncoder& encoder, const uint8_t* raw, size_t groups) {
  return encoder.EncodeGroups(raw, groups);
}

size_t DecodeWideGroups(RansDecoder&, uint8_t*, size_t) { return 0; }

#endif

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(EncodeWideGroups);
HWY_EXPORT(DecodeWideGroups);

size_t RansEncode(const RansSymbolTable& symbols, const uint8_t* raw, size_t count, size_t lanes, uint8_t* out,
                  size_t capacity) {
  if (lanes != kRansWideLanes) return scalar::RansEncode(symbols, raw, count, lanes, out, capacity);
  internal::RansEncoder encoder(symbols, lanes, out, capacity);
  const size_t groups = count / lanes;
  if (!encoder.EncodeGroup(raw + groups * lanes, count % lanes)) return 0;
  return HWY_DYNAMIC_DISPATCH(EncodeWideGroups)(encoder, raw, groups) ? encoder.Finish() : 0;
}

bool RansDecode(const RansSlotTable& slots, const uint8_t* in, size_t size, size_t lanes, uint8_t* raw, size_t count) {
  if (lanes != kRansWideLanes) return scalar::RansDecode(slots, in, size, lanes, raw, count);
  internal::RansDecoder decoder(slots, lanes, in);
  if (!decoder.Begin(size)) return false;
  const size_t done = HWY_DYNAMIC_DISPATCH(DecodeWideGroups)(decoder, raw, count / lanes);
  for (size_t at = done * lanes; at < count; at += lanes) {
    if (!decoder.DecodeGroup(raw + at, std::min(lanes, count - at))) return false;
  }
  return decoder.Finish();
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
