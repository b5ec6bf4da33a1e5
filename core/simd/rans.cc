#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcompress/simd/rans.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kvcompress/simd/half-inl.h"
#include "kvcompress/simd/rans_group.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {

using internal::RansDecoder;
using internal::RansEncoder;

// Both directions look a table up for every symbol, so only targets that gather have a body of their own.
#if HWY_TARGET == HWY_AVX2 || KVC_TARGET_AVX512
namespace {

using DF = hn::ScalableTag<float>;
using DI = hn::RebindToSigned<DF>;
using DU = hn::RebindToUnsigned<DF>;
using DU16 = hn::Rebind<uint16_t, DU>;
using DU8 = hn::Rebind<uint8_t, DU>;
using VU = hn::Vec<DU>;
using VI = hn::Vec<DI>;
using MU = hn::Mask<DU>;
constexpr size_t kLanes = hn::MaxLanes(DU());
constexpr size_t kVectors = kRansWideLanes / kLanes;

HWY_INLINE VU Gather(const uint32_t* table, VU index) { return hn::GatherIndex(DU(), table, hn::BitCast(DI(), index)); }

// Encodes a symbol in each lane; the words that leave go to `out`, which has room for a vector of them. Returns their
// number.
HWY_INLINE size_t EncodeStep(const RansSymbolTable& symbols, const uint8_t* raw, VU& state, uint8_t* out) {
  const DF df;
  const DI di;
  const DU du;
  const VU entry = Gather(symbols.data(), hn::PromoteTo(du, LoadAt(DU8(), raw)));
  const VI frequency = hn::BitCast(di, hn::And(entry, hn::Set(du, 0xffff)));
  VI x = hn::BitCast(di, state);
  const auto full = hn::Not(hn::Lt(hn::ShiftRight<19>(x), frequency));
  const VI words = hn::Compress(hn::And(x, hn::Set(di, 0xffff)), full);
  StoreAt(hn::DemoteTo(DU16(), words), DU16(), out);
  x = hn::IfThenElse(full, hn::ShiftRight<16>(x), x);

  // The quotient is below 2^19, and three roundings to 24 bits move it by less than 1/8: with that taken off it is
  // right or one too small.
  const auto ratio = hn::Div(hn::ConvertTo(df, x), hn::ConvertTo(df, frequency));
  const VI quotient = hn::ConvertTo(di, hn::Sub(ratio, hn::Set(df, 0.125f)));
  const VI rest = hn::Sub(x, hn::Mul(quotient, frequency));
  const VI start = hn::BitCast(di, hn::ShiftRight<16>(entry));
  const VI next = hn::Add(hn::Add(hn::ShiftLeft<kRansBits>(quotient), rest), start);
  const VI one_more = hn::Sub(hn::Set(di, kRansSlots), frequency);
  const auto small = hn::Not(hn::Lt(rest, frequency));
  state = hn::BitCast(du, hn::Add(next, hn::IfThenElseZero(small, one_more)));
  return hn::CountTrue(di, full);
}

// For each mask of 8 lanes, which of the words that follow each other belongs to each lane of it.
#if !KVC_TARGET_AVX512
struct ExpandTable {
  HWY_ALIGN uint8_t word[256][8];
};
constexpr ExpandTable MakeExpandTable() {
  ExpandTable table = {};
  for (unsigned mask = 0; mask < 256; ++mask) {
    uint8_t next = 0;
    for (unsigned lane = 0; lane < 8; ++lane) {
      table.word[mask][lane] = next;
      next = static_cast<uint8_t>(next + (mask >> lane & 1));
    }
    // The entries of lanes behind the last one that takes a word are not used, but must be indices.
    for (unsigned lane = 0; lane < 8; ++lane) table.word[mask][lane] &= 7;
  }
  return table;
}
constexpr ExpandTable kExpand = MakeExpandTable();
#endif

// Which lanes of a vector of states need a word, as bits.
HWY_INLINE unsigned BitsBelowLow(VU state) {
  const auto below = hn::Lt(hn::BitCast(DI(), state), hn::Set(DI(), kRansLow));
#if KVC_TARGET_AVX512
  return below.raw;
#else
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(below.raw)));
#endif
}

// Gives the lanes of `bits` the words at `words`, in order. Reads a whole vector of them.
HWY_INLINE VU Refill(VU state, unsigned bits, const uint8_t* words) {
  const DU du;
  const VU packed = hn::PromoteTo(du, LoadAt(DU16(), words));
#if KVC_TARGET_AVX512
  const auto mask = static_cast<__mmask16>(bits);
  const __m512i expanded = _mm512_maskz_expand_epi32(mask, packed.raw);
  return VU{_mm512_mask_or_epi32(state.raw, mask, _mm512_slli_epi32(state.raw, 16), expanded)};
#else
  const VU place = hn::PromoteTo(du, LoadAt(DU8(), kExpand.word[bits]));
  const VU expanded{_mm256_permutevar8x32_epi32(packed.raw, place.raw)};
  const VU filled = hn::Or(hn::ShiftLeft<16>(state), expanded);
  const auto below = hn::Lt(hn::BitCast(DI(), state), hn::Set(DI(), kRansLow));
  return hn::IfThenElse(hn::RebindMask(du, below), filled, state);
#endif
}

}  // namespace

bool EncodeWideGroups(RansEncoder& encoder, const uint8_t* raw, size_t groups) {
  const DU du;
  VU states[kVectors];
#pragma GCC unroll 8
  for (size_t v = 0; v < kVectors; ++v) states[v] = hn::LoadU(du, encoder.states.data() + v * kLanes);
  const RansSymbolTable& symbols = encoder.symbols;
  uint8_t* out = encoder.out + encoder.size;
  const uint8_t* const end = encoder.out + encoder.capacity;
  while (groups-- > 0) {
    if (static_cast<size_t>(end - out) < internal::RansRoom(kRansWideLanes)) return false;
#pragma GCC unroll 8
    for (size_t v = 0; v < kVectors; ++v) {
      out += 2 * EncodeStep(symbols, raw + groups * kRansWideLanes + v * kLanes, states[v], out);
    }
  }
#pragma GCC unroll 8
  for (size_t v = 0; v < kVectors; ++v) hn::StoreU(states[v], du, encoder.states.data() + v * kLanes);
  encoder.size = static_cast<size_t>(out - encoder.out);
  return true;
}

// Stops in front of a group that the words that are left might not suffice for.
size_t DecodeWideGroups(RansDecoder& decoder, uint8_t* raw, size_t groups) {
  const DU du;
  VU states[kVectors];
#pragma GCC unroll 8
  for (size_t v = 0; v < kVectors; ++v) states[v] = hn::LoadU(du, decoder.states.data() + v * kLanes);
  const uint32_t* slots = decoder.slots.data();
  size_t size = decoder.size;
  size_t group = 0;
  for (; group < groups && size >= 2 * kRansWideLanes; ++group) {
    unsigned bits[kVectors];
#pragma GCC unroll 8
    for (size_t v = 0; v < kVectors; ++v) {
      const VU x = states[v];
      const VU entry = Gather(slots, hn::And(x, hn::Set(du, kRansSlots - 1)));
      StoreAt(hn::U8FromU32(hn::ShiftRight<24>(entry)), DU8(), raw + group * kRansWideLanes + v * kLanes);
      const VU frequency = hn::Add(hn::And(hn::ShiftRight<12>(entry), hn::Set(du, 0xfff)), hn::Set(du, 1));
      states[v] = hn::Add(hn::Mul(frequency, hn::ShiftRight<kRansBits>(x)), hn::And(entry, hn::Set(du, 0xfff)));
      bits[v] = BitsBelowLow(states[v]);
    }
#pragma GCC unroll 8
    for (size_t v = 0; v < kVectors; ++v) size -= 2 * hwy::PopCount(bits[v]);
    const uint8_t* words = decoder.words + size;
#pragma GCC unroll 8
    for (size_t v = 0; v < kVectors; ++v) {
      states[v] = Refill(states[v], bits[v], words);  // at most a vector of words past the last: the states lie there
      words += 2 * hwy::PopCount(bits[v]);
    }
  }
#pragma GCC unroll 8
  for (size_t v = 0; v < kVectors; ++v) hn::StoreU(states[v], du, decoder.states.data() + v * kLanes);
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
