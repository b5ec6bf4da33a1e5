#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/channel_rans.cc"
#include "core/simd/channel_rans.h"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <bit>
#include <type_traits>
#include <utility>

#include "core/simd/channel_rans-inl.h"
#include "core/simd/channel_rans_few.h"
#include "core/simd/rans-inl.h"
#include "core/simd/trellis.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {

#if KVC_TARGET_RANS
namespace {

template <size_t kStateVectors, bool kHasLowBits>
bool EncodeTokens(const StripTables& tables, const uint8_t* symbols, const int32_t* k, size_t tokens,
                  ChannelRansEncoder& encoder) {
  constexpr size_t kGroup = GroupVectors(kStateVectors);
  if (tokens == 0) return true;
  const uint32_t* const base = tables.all->symbols.data();
  VI places[kVectors];
  LowBits low[kVectors];
  Unrolled<kVectors>([&](auto v) KVC_WITHIN {
    places[v] = PlacesOf(tables, v * kLanes);
    if constexpr (kHasLowBits) low[v] = LowBits(tables, v * kLanes);
  });
  const bool has_upper_bits = kHasLowBits && HasUpperBits(low);
  // Entries are looked up a token ahead: what waits for the states should not hold them up.
  VI entries[kVectors], next[kVectors];
  const auto look_up = [&](size_t t) KVC_WITHIN {
    Unrolled<kVectors>([&](auto v) KVC_WITHIN {
      const VI symbol = hn::PromoteTo(DI(), LoadAt(DU8(), symbols + t * kStripChannels + v * kLanes));
      next[v] = EntriesAt<Wait::kNo>(base, hn::Add(symbol, places[v]));
    });
  };
  look_up(tokens - 1);
  LaneStates<kStateVectors> states(encoder.states.data());
  uint8_t* out = encoder.out + encoder.size;
  const uint8_t* const end = encoder.out + encoder.capacity;
  while (tokens-- > 0) {
    if (static_cast<size_t>(end - out) < MaxTokenBytes(tables)) return false;
    states.PassTurn();
    Unrolled<kVectors>([&](auto v) KVC_WITHIN { entries[v] = next[v]; });
    look_up(tokens - (tokens > 0));
    Unrolled<kVectors / kGroup>([&](auto i) KVC_WITHIN {
      constexpr size_t first = kVectors - kGroup * (i + 1);
      if constexpr (kHasLowBits) {
        const int32_t* const row = k + tokens * kStripChannels + first * kLanes;
        Unrolled<kGroup>([&](auto s) KVC_WITHIN {
          out += 2 * EncodeBits(hn::LoadU(DI(), row + s * kLanes), low[first + s].lower, states.lanes[s], out);
        });
        if (HWY_UNLIKELY(has_upper_bits)) {
          Unrolled<kGroup>([&](auto s) KVC_WITHIN {
            const VI value = hn::ShiftRight<kLowBitsAtOnce>(hn::LoadU(DI(), row + s * kLanes));
            out += 2 * EncodeBits(value, low[first + s].upper, states.lanes[s], out);
          });
        }
      }
      Unrolled<kGroup>([&](auto s) KVC_WITHIN { out += 2 * EncodeEntries(entries[first + s], states.lanes[s], out); });
    });
  }
  states.StoreTo(encoder.states.data());
  encoder.size = static_cast<size_t>(out - encoder.out);
  return true;
}

// Symbols as points, and the states passed on.
template <bool kTrellis>
HWY_INLINE VI PassSymbols(VI symbol, VI& state) {
  const DI di;
  const VI one = hn::Set(di, 1);
  const VI magnitude = hn::ShiftRight<1>(hn::Add(symbol, one));
  VI point = hn::Add(magnitude, magnitude);
  if constexpr (kTrellis) {
    const VI high = hn::ShiftRight<1>(state);
    point = hn::Sub(point, hn::Min(high, magnitude));
    const VI odd = hn::And(hn::Xor(magnitude, state), one);
    state = hn::Or(hn::Add(odd, odd), high);
  }
  // Even symbols are negative.
  const VI sign = hn::Sub(hn::And(symbol, one), one);
  return hn::Sub(hn::Xor(point, sign), sign);
}

// Likewise symbols that lack low bits.
template <bool kTrellis>
HWY_INLINE VI PassValues(VI symbol, VI low, VI bits, VI& state) {
  const DI di;
  const VI one = hn::Set(di, 1);
  const VI magnitude = hn::ShiftRight<1>(hn::Add(symbol, one));
  const VI sign = hn::Sub(hn::And(symbol, one), one);
  const VI k = hn::Add(hn::Shl(hn::Sub(hn::Xor(magnitude, sign), sign), bits), low);
  VI point = hn::Add(k, k);
  if constexpr (kTrellis) {
    const VI high = hn::ShiftRight<1>(state);
    point = hn::Sub(point, hn::Max(hn::Min(k, high), hn::Neg(high)));
    const VI odd = hn::And(hn::Xor(k, state), one);
    state = hn::Or(hn::Add(odd, odd), high);
  }
  return point;
}

// The entries of the slots at `index` of each lane's own table, of the quantizers that the trellis's states mean.
template <bool kTrellis>
HWY_INLINE VI SlotEntries(const uint32_t* base, VI index, VI state) {
  if constexpr (!kTrellis) return EntriesAt<Wait::kYes>(base, index);
#if KVC_TARGET_AVX512
  return EitherAt(base, index, hn::Gt(state, hn::Set(DI(), 1)));
#else
  return EntriesAt<Wait::kYes>(base, hn::Add(index, hn::ShiftRight<1>(state)));
#endif
}

template <bool kTrellis, bool kHasLowBits>
HWY_INLINE VI PassToken(VI symbol, VI value, const LowBits& low, VI& state) {
  if constexpr (kHasLowBits) return PassValues<kTrellis>(symbol, value, hn::Add(low.upper, low.lower), state);
  return PassSymbols<kTrellis>(symbol, state);
}

// A vector of the states of a trellis, 0 without one.
template <bool kTrellis>
HWY_INLINE VI MachineAt(const StripStates* trellis, size_t v) {
  const DI di;
  if constexpr (!kTrellis) return hn::Zero(di);
  return hn::Reverse(di, hn::PromoteTo(di, LoadAt(DU8(), trellis->data() + v * kLanes)));
}

void StoreMachine(const VI* machine, StripStates& trellis) {
  for (size_t v = 0; v < kVectors; ++v) {
    const auto risen = hn::BitCast(DU(), hn::Reverse(DI(), machine[v]));
    StoreAt(hn::U8FromU32(risen), DU8(), trellis.data() + v * kLanes);
  }
}

// The points of a token in which a channel has an escape, and the states passed on. False where one is none.
template <bool kTrellis, bool kHasLowBits>
HWY_INLINE bool PassEscapes(const StripTables& tables, const VI* symbol, const VI* value, const LowBits* low,
                            EscapeReader& escapes, VI* machine, int32_t* row) {
  const DI di;
  const VI escape = hn::Set(di, kEscape);
  int32_t states[kStripChannels];
  uint32_t left = 0;  // channels that have one
  Unrolled<kVectors>([&](auto v) KVC_WITHIN {
    const auto stops = hn::Eq(symbol[v], escape);
    left |= BitsOf(hn::Eq(hn::Reverse(di, symbol[v]), escape)) << (v * kLanes);
    VI next = machine[v];
    const VI point = PassToken<kTrellis, kHasLowBits>(symbol[v], value[v], low[v], next);
    hn::StoreU(hn::Reverse(di, hn::IfThenElse(stops, machine[v], next)), di, states + v * kLanes);
    hn::StoreU(hn::Reverse(di, hn::IfThenElse(stops, value[v], point)), di, row + v * kLanes);
  });
  for (; left != 0; left &= left - 1) {
    const auto c = static_cast<size_t>(std::countr_zero(left));
    const auto state = static_cast<uint8_t>(states[c]);
    int32_t k = row[c];
    if (!scalar::DecodeEscape(tables, c, QuantizerOf(state), escapes, k)) return false;
    row[c] = PointOf(k, QuantizerOf(state));
    states[c] = kTrellis ? NextState(state, k % 2 != 0) : 0;
  }
  if constexpr (kTrellis) {
    Unrolled<kVectors>([&](auto v) KVC_WITHIN { machine[v] = hn::Reverse(di, hn::LoadU(di, states + v * kLanes)); });
  }
  return true;
}

// Vectors of lanes are in falling order, as words are popped.
template <size_t kStateVectors, bool kTrellis, bool kHasLowBits>
size_t DecodeTokens(const StripTables& tables, size_t tokens, StripStates* trellis, ChannelRansDecoder& decoder,
                    EscapeReader& escapes, int32_t* points, bool* ok) {
  constexpr size_t kGroup = GroupVectors(kStateVectors);
  const DI di;
  const uint32_t* const base = tables.all->slots[0].data();
  LaneStates<kStateVectors> states(decoder.states.data());
  states.Reverse();
  VI places[kVectors], machine[kVectors];
  LowBits low[kVectors];
  Unrolled<kVectors>([&](auto v) KVC_WITHIN {
    places[v] = hn::Reverse(di, PlacesOf(tables, v * kLanes));
    machine[v] = MachineAt<kTrellis>(trellis, v);
    if constexpr (kHasLowBits) low[v] = LowBits(tables, v * kLanes).Reversed();
  });
  const bool has_upper_bits = kHasLowBits && HasUpperBits(low);
  const uint8_t* end = decoder.words + decoder.size;
  const uint8_t* const last = decoder.words + MaxTokenBytes(tables);
  size_t t = 0;
  for (; t < tokens && end >= last && *ok; ++t) {
    VI symbol[kVectors], value[kVectors];
    VI largest = hn::Zero(di);
    Unrolled<kVectors / kGroup>([&](auto group) KVC_WITHIN {
      constexpr size_t first = kGroup * group;
      Unrolled<kGroup>([&](auto i) KVC_WITHIN {
        constexpr size_t s = kGroup - 1 - i, v = first + s;
        const VI slot = hn::And(hn::Add(states.lanes[s], states.lanes[s]), hn::Set(di, 2 * (kRansSlots - 1)));
        const VI entry = SlotEntries<kTrellis>(base, hn::Add(slot, places[v]), machine[v]);
        symbol[v] = hn::BitCast(di, hn::ShiftRight<24>(hn::BitCast(DU(), entry)));
        value[v] = hn::Zero(di);
        largest = hn::Max(largest, symbol[v]);
        const unsigned bits = DecodeEntries(entry, states.lanes[s]);
        RefillFalling(states.lanes[s], bits, end);
        end -= 2 * hwy::PopCount(bits);
      });
      if constexpr (kHasLowBits) {
        const auto decode = [&](VI LowBits::*part) KVC_WITHIN {
          Unrolled<kGroup>([&](auto i) KVC_WITHIN {
            constexpr size_t s = kGroup - 1 - i;
            DecodeBits(low[first + s].*part, states.lanes[s], &end, value[first + s]);
          });
        };
        if (HWY_UNLIKELY(has_upper_bits)) decode(&LowBits::upper);
        decode(&LowBits::lower);
      }
    });
    states.PassTurn();
    int32_t* const row = points + t * kStripChannels;
    if (HWY_UNLIKELY(!hn::AllFalse(di, hn::Eq(largest, hn::Set(di, kEscape))))) {
      *ok = PassEscapes<kTrellis, kHasLowBits>(tables, symbol, value, low, escapes, machine, row);
      continue;
    }
    Unrolled<kVectors>([&](auto v) KVC_WITHIN {
      const VI point = PassToken<kTrellis, kHasLowBits>(symbol[v], value[v], low[v], machine[v]);
      hn::StoreU(hn::Reverse(di, point), di, row + v * kLanes);
    });
  }
  states.Reverse();
  states.StoreTo(decoder.states.data());
  if constexpr (kTrellis) StoreMachine(machine, *trellis);
  decoder.size = static_cast<size_t>(end - decoder.words);
  return t;
}

// Calls `body` with the number of vectors that so many lanes take, as a constant.
template <class Body>
HWY_INLINE auto WithStateVectors(size_t lanes, Body body) {
  if (lanes == kMinVectorLanes) return body(std::integral_constant<size_t, kMinVectorLanes / kLanes>());
  return lanes == kStripChannels ? body(std::integral_constant<size_t, kVectors>())
                                 : body(std::integral_constant<size_t, 2 * kVectors>());
}

}  // namespace

// Whole strips, in half as many lanes as channels or more.
bool EncodeInVectors(const StripTables& tables, const uint8_t* symbols, const int32_t* k, size_t tokens,
                     ChannelRansEncoder& encoder) {
  return WithStateVectors(encoder.lanes, [&](auto vectors) HWY_ATTR {
    return tables.has_low_bits ? EncodeTokens<vectors, true>(tables, symbols, k, tokens, encoder)
                               : EncodeTokens<vectors, false>(tables, symbols, k, tokens, encoder);
  });
}

// Likewise; leaves tokens undone for which the words that are left might not suffice.
size_t DecodeInVectors(const StripTables& tables, size_t tokens, StripStates* states, ChannelRansDecoder& decoder,
                       EscapeReader& escapes, int32_t* points, bool* ok) {
  return WithStateVectors(decoder.lanes, [&](auto vectors) HWY_ATTR {
    const auto decode = [&](auto trellis, auto low_bits) HWY_ATTR {
      return DecodeTokens<vectors, trellis, low_bits>(tables, tokens, states, decoder, escapes, points, ok);
    };
    const auto decode_with = [&](auto trellis) HWY_ATTR {
      return tables.has_low_bits ? decode(trellis, std::true_type()) : decode(trellis, std::false_type());
    };
    return states != nullptr ? decode_with(std::true_type()) : decode_with(std::false_type());
  });
}

#else

bool EncodeInVectors(const StripTables& tables, const uint8_t* symbols, const int32_t* k, size_t tokens,
                     ChannelRansEncoder& encoder) {
  if (AreFewLanes(encoder.lanes, kStripChannels)) {
    return EncodeFewLanes(tables, symbols, k, tokens, kStripChannels, encoder);
  }
  return scalar::EncodeStrip(tables, symbols, k, tokens, kStripChannels, encoder);
}

size_t DecodeInVectors(const StripTables& tables, size_t tokens, StripStates* states, ChannelRansDecoder& decoder,
                       EscapeReader& escapes, int32_t* points, bool* ok) {
  if (!AreFewLanes(decoder.lanes, kStripChannels)) return 0;
  return DecodeFewLanes(tables, tokens, kStripChannels, states, decoder, escapes, points, ok);
}

#endif

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

namespace {

HWY_EXPORT(EncodeInVectors);
HWY_EXPORT(DecodeInVectors);

bool FillVectors(size_t lanes, size_t channels) { return channels == kStripChannels && lanes >= kMinVectorLanes; }

}  // namespace

bool EncodeStrip(const StripTables& tables, const uint8_t* symbols, const int32_t* k, size_t tokens, size_t channels,
                 ChannelRansEncoder& encoder) {
  if (FillVectors(encoder.lanes, channels)) {
    return HWY_DYNAMIC_DISPATCH(EncodeInVectors)(tables, symbols, k, tokens, encoder);
  }
  if (AreFewLanes(encoder.lanes, channels)) {
    return EncodeFewLanes(tables, symbols, k, tokens, channels, encoder);
  }
  return scalar::EncodeStrip(tables, symbols, k, tokens, channels, encoder);
}

namespace {

// Returns how many tokens it has decoded: not those for which the words that are left might not suffice, and none of
// strips that there is nothing faster for than their definition.
size_t DecodeFast(const StripTables& tables, size_t tokens, size_t channels, StripStates* states,
                  ChannelRansDecoder& decoder, EscapeReader& escapes, int32_t* points, bool* ok) {
  if (FillVectors(decoder.lanes, channels)) {
    return HWY_DYNAMIC_DISPATCH(DecodeInVectors)(tables, tokens, states, decoder, escapes, points, ok);
  }
  if (!AreFewLanes(decoder.lanes, channels)) return 0;
  return DecodeFewLanes(tables, tokens, channels, states, decoder, escapes, points, ok);
}

// Likewise the last words, fewer than MaxTokenBytes, of which there may be many tokens: as many bytes before them as a
// token takes let them suffice. *ok becomes false where these are needed.
size_t DecodeLastWords(const StripTables& tables, size_t tokens, size_t channels, StripStates* states,
                       ChannelRansDecoder& decoder, EscapeReader& escapes, int32_t* points, bool* ok) {
  const size_t before = MaxTokenBytes(tables);
  if (decoder.size >= before) return 0;
  std::array<uint8_t, 2 * kMostTokenBytes> words = {};
  std::copy_n(decoder.words, decoder.size, words.data() + before);
  ChannelRansDecoder last = decoder;
  last.words = words.data();
  last.size = before + decoder.size;
  const size_t done = DecodeFast(tables, tokens, channels, states, last, escapes, points, ok);
  *ok = *ok && last.size >= before;
  decoder.states = last.states;
  decoder.size = last.size - std::min(before, last.size);
  return done;
}

}  // namespace

bool DecodeStrip(const StripTables& tables, size_t tokens, size_t channels, StripStates* states,
                 ChannelRansDecoder& decoder, EscapeReader& escapes, int32_t* points) {
  bool ok = true;
  size_t done = 0;
  for (const auto decode : {DecodeFast, DecodeLastWords}) {
    done += decode(tables, tokens - done, channels, states, decoder, escapes, points + done * kStripChannels, &ok);
    if (done == tokens || !ok) return ok;
  }
  return scalar::DecodeStrip(tables, tokens - done, channels, states, decoder, escapes, points + done * kStripChannels);
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
