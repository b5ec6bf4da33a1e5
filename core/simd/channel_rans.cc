#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/channel_rans.cc"
#include "core/simd/channel_rans.h"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/simd/rans-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {

#if KVC_TARGET_RANS
namespace {

constexpr size_t kVectors = kStripChannels / kLanes;

// Where the tables of kLanes channels are, in words from the first of all.
HWY_INLINE VI PlacesOf(const StripTables& tables, size_t channel) {
  constexpr auto kWords = static_cast<int32_t>(sizeof(ChannelTable) / sizeof(uint32_t));
  return hn::Mul(hn::LoadU(DI(), tables.index.data() + channel), hn::Set(DI(), kWords));
}

// Lanes of `bits`, from the lowest, as a mask.
HWY_INLINE hn::Mask<DI> MaskOf(uint32_t bits) {
  const DI di;
  const VI lane = hn::Iota(di, 0);
  return hn::Ne(hn::And(hn::Set(di, static_cast<int32_t>(bits)), hn::Shl(hn::Set(di, 1), lane)), hn::Zero(di));
}

// The entries of a table at `index` of each lane's own table, from `base` on.
HWY_INLINE VI EntriesAt(const uint32_t* base, VI index) {
  HWY_ALIGN int32_t at[kLanes];
  hn::Store(index, DI(), at);
  return LookUp([&](size_t lane) HWY_ATTR { return base[at[lane]]; });
}

template <size_t kStateVectors>
struct LaneStates {
  VI lanes[kStateVectors];

  explicit HWY_INLINE LaneStates(const uint32_t* from) {
    for (size_t v = 0; v < kStateVectors; ++v) lanes[v] = hn::BitCast(DI(), hn::LoadU(DU(), from + v * kLanes));
  }
  HWY_INLINE void StoreTo(uint32_t* to) const {
    for (size_t v = 0; v < kStateVectors; ++v) hn::StoreU(hn::BitCast(DU(), lanes[v]), DU(), to + v * kLanes);
  }
};

template <size_t kStateVectors>
bool EncodeTokens(const StripTables& tables, const uint8_t* symbols, size_t tokens, ChannelRansEncoder& encoder) {
  const uint32_t* const base = tables.all->symbols.data();
  VI places[kVectors];
  for (size_t v = 0; v < kVectors; ++v) places[v] = PlacesOf(tables, v * kLanes);
  LaneStates<kStateVectors> states(encoder.states.data());
  uint8_t* out = encoder.out + encoder.size;
  const uint8_t* const end = encoder.out + encoder.capacity;
  while (tokens-- > 0) {
    if (static_cast<size_t>(end - out) < 2 * kStripChannels) return false;
    for (size_t group = kVectors / kStateVectors; group-- > 0;) {
#pragma GCC unroll 4
      for (size_t s = 0; s < kStateVectors; ++s) {
        const size_t v = group * kStateVectors + s;
        const VI symbol = hn::PromoteTo(DI(), LoadAt(DU8(), symbols + tokens * kStripChannels + v * kLanes));
        const VI entry = EntriesAt(base, hn::Add(symbol, places[v]));
        out += 2 * EncodeEntries(entry, states.lanes[s], out);
      }
    }
  }
  states.StoreTo(encoder.states.data());
  encoder.size = static_cast<size_t>(out - encoder.out);
  return true;
}

// The symbols of a token as points, and its states passed on.
template <bool kTrellis>
HWY_INLINE VI PassToken(VI symbol, VI& state) {
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

template <size_t kStateVectors, bool kTrellis>
size_t DecodeTokens(const StripTables& tables, size_t tokens, uint32_t held, StripStates* trellis,
                    ChannelRansDecoder& decoder, int32_t* points, uint32_t* stopped) {
  const DI di;
  const uint32_t* const base = tables.all->slots[0].data();
  LaneStates<kStateVectors> states(decoder.states.data());
  VI places[kVectors], machine[kVectors];
  for (size_t v = 0; v < kVectors; ++v) {
    places[v] = PlacesOf(tables, v * kLanes);
    machine[v] = kTrellis ? hn::PromoteTo(di, LoadAt(DU8(), trellis->data() + v * kLanes)) : hn::Zero(di);
  }
  size_t size = decoder.size;
  size_t t = 0;
  *stopped = 0;
  for (; t < tokens && size >= 2 * kStripChannels; ++t) {
    VI symbol[kVectors];
    VI largest = hn::Zero(di);
    for (size_t group = 0; group < kVectors / kStateVectors; ++group) {
#pragma GCC unroll 4
      for (size_t s = kStateVectors; s-- > 0;) {
        const size_t v = group * kStateVectors + s;
        VI index = hn::Add(hn::And(states.lanes[s], hn::Set(di, kRansSlots - 1)), places[v]);
        if constexpr (kTrellis) index = hn::Add(index, hn::ShiftLeft<kRansBits>(hn::ShiftRight<1>(machine[v])));
        const VI entry = EntriesAt(base, index);
        symbol[v] = hn::BitCast(di, hn::ShiftRight<24>(hn::BitCast(DU(), entry)));
        largest = hn::Max(largest, symbol[v]);
        const unsigned bits = DecodeEntries(entry, states.lanes[s]);
        size -= 2 * hwy::PopCount(bits);
        Refill(states.lanes[s], bits, decoder.words + size);  // what it reads past the last word are the states
      }
    }
    int32_t* const row = points + t * kStripChannels;
    if (HWY_UNLIKELY(held != 0 || !hn::AllFalse(di, hn::Eq(largest, hn::Set(di, kEscape))))) {
      *stopped = held;
      for (size_t v = 0; v < kVectors; ++v) {
        *stopped |= BitsOf(hn::Eq(symbol[v], hn::Set(di, kEscape))) << (v * kLanes);
        VI next = machine[v];
        const VI point = PassToken<kTrellis>(symbol[v], next);
        const auto stops = MaskOf(*stopped >> (v * kLanes));
        machine[v] = hn::IfThenElse(stops, machine[v], next);
        hn::StoreU(hn::IfThenElse(stops, symbol[v], point), di, row + v * kLanes);
      }
      break;
    }
#pragma GCC unroll 4
    for (size_t v = 0; v < kVectors; ++v) hn::StoreU(PassToken<kTrellis>(symbol[v], machine[v]), di, row + v * kLanes);
  }
  states.StoreTo(decoder.states.data());
  if constexpr (kTrellis) {
    for (size_t v = 0; v < kVectors; ++v) {
      StoreAt(hn::U8FromU32(hn::BitCast(DU(), machine[v])), DU8(), trellis->data() + v * kLanes);
    }
  }
  decoder.size = size;
  return t;
}

// Calls `body` with the number of vectors that so many lanes take, as a constant; false where they take no whole ones.
template <class Body>
HWY_INLINE bool WithStateVectors(size_t lanes, Body body) {
  if (lanes == kLanes) {
    body(std::integral_constant<size_t, 1>());
  } else if (lanes == 2 * kLanes) {
    body(std::integral_constant<size_t, 2>());
  } else if (kLanes == 8 && lanes == 4 * kLanes) {
    body(std::integral_constant<size_t, kVectors>());
  } else {
    return false;
  }
  return true;
}

}  // namespace

bool EncodeStripAll(const StripTables& tables, const uint8_t* symbols, size_t tokens, size_t channels,
                    ChannelRansEncoder& encoder) {
  bool fits = false;
  const auto body = [&](auto vectors) HWY_ATTR { fits = EncodeTokens<vectors>(tables, symbols, tokens, encoder); };
  if (channels == kStripChannels && WithStateVectors(encoder.lanes, body)) return fits;
  return scalar::EncodeStrip(tables, symbols, tokens, channels, encoder);
}

size_t DecodeStripAll(const StripTables& tables, size_t tokens, size_t channels, uint32_t held, StripStates* states,
                      ChannelRansDecoder& decoder, int32_t* points, uint32_t* stopped, bool* ok) {
  size_t done = 0;
  *stopped = 0;
  if (channels == kStripChannels) {
    WithStateVectors(decoder.lanes, [&](auto vectors) HWY_ATTR {
      done = states != nullptr ? DecodeTokens<vectors, true>(tables, tokens, held, states, decoder, points, stopped)
                               : DecodeTokens<vectors, false>(tables, tokens, held, states, decoder, points, stopped);
    });
  }
  if (done == tokens || *stopped != 0) return done;
  // The words that are left might not suffice for a token.
  return done + scalar::DecodeStrip(tables, tokens - done, channels, held, states, decoder,
                                    points + done * kStripChannels, stopped, ok);
}

#else

bool EncodeStripAll(const StripTables& tables, const uint8_t* symbols, size_t tokens, size_t channels,
                    ChannelRansEncoder& encoder) {
  return scalar::EncodeStrip(tables, symbols, tokens, channels, encoder);
}

size_t DecodeStripAll(const StripTables& tables, size_t tokens, size_t channels, uint32_t held, StripStates* states,
                      ChannelRansDecoder& decoder, int32_t* points, uint32_t* stopped, bool* ok) {
  return scalar::DecodeStrip(tables, tokens, channels, held, states, decoder, points, stopped, ok);
}

#endif

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(EncodeStripAll);
HWY_EXPORT(DecodeStripAll);

bool EncodeStrip(const StripTables& tables, const uint8_t* symbols, size_t tokens, size_t channels,
                 ChannelRansEncoder& encoder) {
  return HWY_DYNAMIC_DISPATCH(EncodeStripAll)(tables, symbols, tokens, channels, encoder);
}

size_t DecodeStrip(const StripTables& tables, size_t tokens, size_t channels, uint32_t held, StripStates* states,
                   ChannelRansDecoder& decoder, int32_t* points, uint32_t* stopped, bool* ok) {
  return HWY_DYNAMIC_DISPATCH(DecodeStripAll)(tables, tokens, channels, held, states, decoder, points, stopped, ok);
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
