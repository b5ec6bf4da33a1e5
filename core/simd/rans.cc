#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/rans.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "core/simd/cpu_features.h"
#include "core/simd/rans-inl.h"
#include "core/simd/rans_group.h"
#include "core/simd/rans_halves-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {

using internal::RansDecoder;
using internal::RansEncoder;

#if KVC_TARGET_RANS
namespace {

constexpr size_t kVectors = kRansWideLanes / kLanes;

// The states of all lanes.
struct States {
  VI lanes[kVectors];

  explicit HWY_INLINE States(const std::array<uint32_t, kRansWideLanes>& from) {
#pragma GCC unroll 16
    for (size_t v = 0; v < kVectors; ++v) lanes[v] = hn::BitCast(DI(), hn::LoadU(DU(), from.data() + v * kLanes));
  }
  HWY_INLINE void StoreTo(std::array<uint32_t, kRansWideLanes>& to) const {
#pragma GCC unroll 16
    for (size_t v = 0; v < kVectors; ++v) hn::StoreU(hn::BitCast(DU(), lanes[v]), DU(), to.data() + v * kLanes);
  }
};

#if KVC_TARGET_AVX512

// EncodeWideGroups with gathers. All vectors take each step together, and each group's gathers stand in front of the
// steps of the one before: a CPU does not look far enough ahead to find them behind.
bool EncodeGathering(RansEncoder& encoder, const uint8_t* raw, size_t groups) {
  States states(encoder.states);
  uint8_t* out = encoder.out + encoder.size;
  const uint8_t* const end = encoder.out + encoder.capacity;
  const uint32_t* const symbols = encoder.symbols.data();
  VI next[kVectors];
  VF next_reciprocals[kVectors];
  const auto look_up = [&](size_t group) KVC_WITHIN {
    Unrolled<kVectors>([&](size_t v) KVC_WITHIN {
      const auto bytes = LoadAt(DU8(), raw + group * kRansWideLanes + v * kLanes);
      next[v] = Gather(symbols, hn::PromoteTo(DI(), bytes));
      next_reciprocals[v] = ReciprocalOf(next[v]);
    });
  };
  if (groups > 0) look_up(groups - 1);
  while (groups-- > 0) {
    if (static_cast<size_t>(end - out) < internal::RansRoom(kRansWideLanes)) return false;
    VI entries[kVectors];
    VF reciprocals[kVectors];
    Unrolled<kVectors>([&](size_t v) KVC_WITHIN {
      entries[v] = next[v];
      reciprocals[v] = next_reciprocals[v];
    });
    if (groups > 0) look_up(groups - 1);
    Unrolled<kVectors>([&](size_t v) KVC_WITHIN { out += 2 * MakeRoom(entries[v], states.lanes[v], out); });
    Unrolled<kVectors>([&](size_t v) KVC_WITHIN { AddEntries(entries[v], reciprocals[v], states.lanes[v]); });
  }
  states.StoreTo(encoder.states);
  encoder.size = static_cast<size_t>(out - encoder.out);
  return true;
}

// DecodeWideGroups with gathers. The states are held in falling order of lanes, as words are popped: then which words a
// vector may take is known before it is known how many it takes.
size_t DecodeGathering(RansDecoder& decoder, uint8_t* raw, size_t groups) {
  const DI di;
  const RansSlotTable& slots = decoder.slots;
  const uint8_t* const words = decoder.words;
  const uint8_t* end = words + decoder.size;
  const auto place = [](size_t v) { return (kVectors - 1 - v) * kLanes; };
  VI states[kVectors];
  Unrolled<kVectors>([&](size_t v) KVC_WITHIN {
    states[v] = hn::Reverse(di, hn::BitCast(di, hn::LoadU(DU(), decoder.states.data() + place(v))));
  });
  size_t group = 0;
  for (; group < groups && end - words >= static_cast<ptrdiff_t>(2 * kRansWideLanes); ++group, raw += kRansWideLanes) {
    VI entries[kVectors];
    unsigned bits[kVectors];
    Unrolled<kVectors>([&](size_t v) KVC_WITHIN {
      entries[v] = Gather(slots.data(), hn::And(states[v], hn::Set(di, kRansSlots - 1)));
    });
    Unrolled<kVectors>([&](size_t v) KVC_WITHIN { bits[v] = DecodeEntries(entries[v], states[v]); });
    Unrolled<kVectors>([&](size_t v) KVC_WITHIN {
      RefillFalling(states[v], bits[v], end);
      end -= 2 * hwy::PopCount(bits[v]);
    });
    Unrolled<kVectors>([&](size_t v) KVC_WITHIN {
      const auto symbols = hn::Reverse(DU(), hn::ShiftRight<24>(hn::BitCast(DU(), entries[v])));
      StoreAt(hn::U8FromU32(symbols), DU8(), raw + place(v));
    });
  }
  Unrolled<kVectors>([&](size_t v) KVC_WITHIN {
    hn::StoreU(hn::BitCast(DU(), hn::Reverse(di, states[v])), DU(), decoder.states.data() + place(v));
  });
  decoder.size = static_cast<size_t>(end - words);
  return group;
}

#endif  // KVC_TARGET_AVX512

// Encodes a symbol in each lane; the words that leave go to `out`. Returns their number.
HWY_INLINE size_t EncodeStep(const RansSymbolTable& symbols, const uint8_t* raw, VI& state, uint8_t* out) {
  return EncodeEntries(LookUp([&](size_t lane) HWY_ATTR { return symbols[raw[lane]]; }), state, out);
}

// The entry of each lane's slot.
HWY_INLINE VI EntriesOf(const RansSlotTable& slots, VI state) {
  HWY_ALIGN uint32_t index[kLanes];
  hn::Store(hn::BitCast(DU(), hn::And(state, hn::Set(DI(), kRansSlots - 1))), DU(), index);
#if HWY_TARGET == HWY_AVX2
  asm("" : "+m"(index));  // GCC would take each lane out of the register, by shuffles
  // Loads that fill a vector take no port for shuffles, of which there is one, and any port blends.
  const auto all = [&](size_t lane) HWY_ATTR { return _mm256_set1_epi32(static_cast<int>(slots[index[lane]])); };
  const __m256i lower =
      _mm256_blend_epi32(_mm256_blend_epi32(all(0), all(1), 0x02), _mm256_blend_epi32(all(2), all(3), 0x08), 0x0c);
  const __m256i upper =
      _mm256_blend_epi32(_mm256_blend_epi32(all(4), all(5), 0x20), _mm256_blend_epi32(all(6), all(7), 0x80), 0xc0);
  return VI{_mm256_blend_epi32(lower, upper, 0xf0)};
#else
  return LookUp([&](size_t lane) HWY_ATTR { return slots[index[lane]]; });
#endif
}

// Decodes a symbol in each lane, whose entry it writes to `entry`. Returns which states need a word, as bits.
HWY_INLINE unsigned DecodeStep(const RansSlotTable& slots, VI& state, VI& entry) {
  entry = EntriesOf(slots, state);
  return DecodeEntries(entry, state);
}

// Vectors whose symbols are stored together, for fewer shuffles.
constexpr size_t kStoredTogether = HWY_TARGET == HWY_AVX2 ? 4 : 1;

HWY_INLINE void StoreSymbols(const VI (&entries)[kStoredTogether], uint8_t* raw) {
#if HWY_TARGET == HWY_AVX2
  const auto symbols = [&](size_t i) HWY_ATTR { return _mm256_srli_epi32(entries[i].raw, 24); };
  const __m256i words0 = _mm256_packus_epi32(symbols(0), symbols(1));
  const __m256i words2 = _mm256_packus_epi32(symbols(2), symbols(3));
  // Four lanes of each vector, then the other four.
  const __m256i bytes = _mm256_packus_epi16(words0, words2);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  StoreAt(VI{_mm256_permutevar8x32_epi32(bytes, order)}, DI(), raw);
#else
  StoreAt(hn::U8FromU32(hn::ShiftRight<24>(hn::BitCast(DU(), entries[0]))), DU8(), raw);
#endif
}

}  // namespace

bool EncodeWideGroups(RansEncoder& encoder, const uint8_t* raw, size_t groups) {
#if KVC_TARGET_AVX512
  if (HalvesTable table; PermutesBytes() && table.Make(encoder.symbols)) {
    return EncodeHalves(table, encoder, raw, groups);
  }
  if (GathersWell()) return EncodeGathering(encoder, raw, groups);
#endif
  States states(encoder.states);
  uint8_t* out = encoder.out + encoder.size;
  const uint8_t* const end = encoder.out + encoder.capacity;
  while (groups-- > 0) {
    if (static_cast<size_t>(end - out) < internal::RansRoom(kRansWideLanes)) return false;
#pragma GCC unroll 16
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
#if KVC_TARGET_AVX512
  if (GathersWell()) return DecodeGathering(decoder, raw, groups);
#endif
  States states(decoder.states);
  size_t size = decoder.size;
  size_t group = 0;
  for (; group < groups && size >= 2 * kRansWideLanes; ++group) {
    VI entries[kStoredTogether];
    // The highest lanes first, as words are popped: then a vector waits only for those in front of it.
#pragma GCC unroll 16
    for (size_t v = kVectors; v-- > 0;) {
      const unsigned bits = DecodeStep(decoder.slots, states.lanes[v], entries[v % kStoredTogether]);
      size -= 2 * hwy::PopCount(bits);
      Refill(states.lanes[v], bits, decoder.words + size);  // what it reads past the last word are the states
      if (v % kStoredTogether == 0) StoreSymbols(entries, raw + group * kRansWideLanes + v * kLanes);
    }
  }
  states.StoreTo(decoder.states);
  decoder.size = size;
  return group;
}

#else

bool EncodeWideGroups(RansEncoder& encoder, const uint8_t* raw, size_t groups) {
  return encoder.EncodeSideBySide<kRansWideLanes>(raw, groups);
}

size_t DecodeWideGroups(RansDecoder& decoder, uint8_t* raw, size_t groups) {
  return decoder.DecodeSideBySide<kRansWideLanes>(raw, groups);
}

#endif

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(EncodeWideGroups);
HWY_EXPORT(DecodeWideGroups);

size_t RansEncode(const RansSymbolTable& symbols, const uint8_t* raw, size_t count, size_t lanes, uint8_t* out,
                  size_t capacity) {
  internal::RansEncoder encoder(symbols, lanes, out, capacity);
  const size_t groups = count / lanes;
  if (!encoder.EncodeGroup(raw + groups * lanes, count % lanes)) return 0;
  const bool has_room = lanes == kRansWideLanes ? HWY_DYNAMIC_DISPATCH(EncodeWideGroups)(encoder, raw, groups)
                                                : encoder.EncodeSideBySide<kRansNarrowLanes>(raw, groups);
  return has_room ? encoder.Finish() : 0;
}

namespace {

// Decodes wide groups for which the words that are left might not suffice, although of bytes that nearly all are the
// same one word may do for many groups: zeros in front of the words let kernels go on. False where a group takes one.
bool DecodeLastGroups(internal::RansDecoder& decoder, uint8_t* raw, size_t groups) {
  constexpr size_t kGroupBytes = 2 * kRansWideLanes;  // of words, at most
  uint8_t words[3 * kGroupBytes] = {};                // and room behind them, where some kernels look
  std::memcpy(words + kGroupBytes, decoder.words, std::min(decoder.size, kGroupBytes));
  internal::RansDecoder last(decoder.slots, decoder.lanes, words);
  last.states = decoder.states;
  last.size = kGroupBytes + decoder.size;
  const size_t done = HWY_DYNAMIC_DISPATCH(DecodeWideGroups)(last, raw, groups);
  if (done < groups || last.size < kGroupBytes) return false;
  decoder.states = last.states;
  decoder.size = last.size - kGroupBytes;
  return true;
}

}  // namespace

bool RansDecode(const RansSlotTable& slots, const uint8_t* in, size_t size, size_t lanes, uint8_t* raw, size_t count) {
  internal::RansDecoder decoder(slots, lanes, in);
  if (!decoder.Begin(size)) return false;
  const size_t groups = count / lanes;
  const bool is_wide = lanes == kRansWideLanes;
  size_t done = is_wide ? HWY_DYNAMIC_DISPATCH(DecodeWideGroups)(decoder, raw, groups)
                        : decoder.DecodeSideBySide<kRansNarrowLanes>(raw, groups);
  if (is_wide && done < groups) {
    if (!DecodeLastGroups(decoder, raw + done * lanes, groups - done)) return false;
    done = groups;
  }
  for (size_t at = done * lanes; at < count; at += lanes) {
    if (!decoder.DecodeGroup(raw + at, std::min(lanes, count - at))) return false;
  }
  return decoder.Finish();
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
