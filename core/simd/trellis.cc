#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/trellis.cc"
#include "core/simd/trellis.h"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <limits>

#include "core/simd/half-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

using VI = hn::Vec<DI>;
using DU8 = hn::Rebind<uint8_t, DU>;

// Vectors of channels that are worked on side by side, so that each hides the others' latency.
constexpr size_t kBeside = kLanes >= 8 ? 2 : 1;
constexpr size_t kBesideChannels = kBeside * kLanes;
// Tokens whose decisions, a bit for each of four states, fill a lane.
constexpr size_t kTokensAWord = 8;

// The costs of the four states, and their decisions of the last tokens, the latest in the lowest bits.
struct Paths {
  VF cost[4];
  VI decisions;

  HWY_INLINE Paths() : decisions(hn::Zero(DI())) {
    cost[0] = hn::Zero(DF());
    cost[1] = cost[2] = cost[3] = hn::Set(DF(), 1e30f);
  }

  // The steps of scalar::TrellisQuantize.
  HWY_INLINE void Take(VF y) {
    const DF df;
    const DI di;
    const VF two = hn::Set(df, 2);
    const VF one = hn::Set(df, 1);
    const VF a = hn::Abs(y);
    const VF u = hn::Sub(a, hn::Mul(hn::Set(df, 4), hn::Round(hn::Mul(a, hn::Set(df, 0.25f)))));
    const VF to0 = hn::Abs(u);
    const VF to2 = hn::Sub(two, to0);
    const VF to1 = hn::Sub(two, hn::Abs(hn::Add(u, one)));
    const VF to3 = hn::IfThenElse(hn::Lt(a, hn::Set(df, 1.5f)), a, hn::Sub(two, hn::Abs(hn::Sub(u, one))));
    const VF s0 = hn::Mul(to0, to0), s1 = hn::Mul(to1, to1), s2 = hn::Mul(to2, to2), s3 = hn::Mul(to3, to3);
    const VF first[4] = {hn::Add(cost[0], s0), hn::Add(cost[2], s3), hn::Add(cost[0], s2), hn::Add(cost[2], s1)};
    const VF second[4] = {hn::Add(cost[1], s2), hn::Add(cost[3], s1), hn::Add(cost[1], s0), hn::Add(cost[3], s3)};
    VI bits = hn::ShiftLeft<4>(decisions);
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s) {
      const auto taken = hn::RebindMask(di, hn::Lt(second[s], first[s]));
      bits = hn::Or(bits, hn::IfThenElseZero(taken, hn::Set(di, 1 << s)));
      cost[s] = hn::Min(second[s], first[s]);
    }
    decisions = bits;
  }

  // The state in which the cheapest path ends.
  HWY_INLINE VI Last() const {
    const DI di;
    const auto bit_of = [di](auto mask)
                            HWY_ATTR { return hn::IfThenElseZero(hn::RebindMask(di, mask), hn::Set(di, 1)); };
    const auto high = hn::Lt(hn::Min(cost[2], cost[3]), hn::Min(cost[0], cost[1]));
    const VI of_high = hn::Add(hn::Set(di, 2), bit_of(hn::Lt(cost[3], cost[2])));
    return hn::IfThenElse(hn::RebindMask(di, high), of_high, bit_of(hn::Lt(cost[1], cost[0])));
  }
};

// The value of `y` that the path took into `state`, which becomes the state before; `bits` are the token's decisions.
HWY_INLINE VI StepBack(VF y, VI bits, VI& state) {
  const DF df;
  const DI di;
  const VI one = hn::Set(di, 1);
  const VI second = hn::And(hn::Shr(bits, state), one);
  const VI quantizer = hn::And(state, one);
  const VI odd = hn::Xor(hn::ShiftRight<1>(state), second);
  const VF a = hn::Abs(y);
  const VF shift = hn::ConvertTo(df, hn::Sub(quantizer, hn::Add(odd, odd)));
  const VI half = Nearest(hn::Mul(hn::Add(a, shift), hn::Set(df, 0.25f)));
  VI value = hn::Add(hn::Add(half, half), odd);
  const auto is_zero = hn::And(hn::RebindMask(di, hn::Lt(a, hn::Set(df, 1.5f))), hn::Gt(quantizer, odd));
  value = hn::IfThenZeroElse(is_zero, value);
  const VI sign = hn::ShiftRight<31>(hn::BitCast(di, y));
  state = hn::Add(hn::Add(quantizer, quantizer), second);
  return hn::Sub(hn::Xor(value, sign), sign);
}

void QuantizeBeside(const float* y, size_t tokens, uint32_t* decisions, int32_t* k) {
  const DF df;
  const DI di;
  Paths paths[kBeside];
  for (size_t t = 0; t < tokens; ++t) {
#pragma GCC unroll 2
    for (size_t v = 0; v < kBeside; ++v) paths[v].Take(hn::LoadU(df, y + t * kStripChannels + v * kLanes));
    if (t % kTokensAWord == kTokensAWord - 1) {
      for (size_t v = 0; v < kBeside; ++v) {
        hn::StoreU(hn::BitCast(DU(), paths[v].decisions), DU(),
                   decisions + t / kTokensAWord * kBesideChannels + v * kLanes);
      }
    }
  }
  // The last tokens' decisions are at hand.
  VI state[kBeside], words[kBeside];
  for (size_t v = 0; v < kBeside; ++v) {
    state[v] = paths[v].Last();
    words[v] = paths[v].decisions;
  }
  for (size_t t = tokens; t-- > 0;) {
#pragma GCC unroll 2
    for (size_t v = 0; v < kBeside; ++v) {
      const size_t at = t * kStripChannels + v * kLanes;
      hn::StoreU(StepBack(hn::LoadU(df, y + at), words[v], state[v]), di, k + at);
      words[v] = hn::BitCast(di, hn::ShiftRight<4>(hn::BitCast(DU(), words[v])));
    }
    if (t % kTokensAWord == 0 && t > 0) {
      for (size_t v = 0; v < kBeside; ++v) {
        words[v] = hn::BitCast(di, hn::LoadU(DU(), decisions + (t / kTokensAWord - 1) * kBesideChannels + v * kLanes));
      }
    }
  }
}

// How kLanes channels of a strip are coded, and their states.
struct SymbolLanes {
  VI low_bits, reach[2], state;

  SymbolLanes(const StripTables& tables, size_t channels, size_t first, const StripStates* states) {
    const DI di;
    HWY_ALIGN int32_t lanes[3][kLanes];
    for (size_t i = 0; i < kLanes; ++i) {
      // Channels that are not there have no escapes.
      const size_t c = first + i;
      for (size_t q = 0; q < 2; ++q) {
        lanes[q][i] = c < channels ? tables[c].reach[q] : std::numeric_limits<int32_t>::max();
      }
      lanes[2][i] = states != nullptr ? (*states)[c] : 0;
    }
    low_bits = hn::LoadU(di, tables.low_bits.data() + first);
    reach[0] = hn::Load(di, lanes[0]);
    reach[1] = hn::Load(di, lanes[1]);
    state = hn::Load(di, lanes[2]);
  }
};

// The symbols of a token's channels, kLanes of them, and their states passed on; which are escapes.
template <bool kTrellis>
HWY_INLINE hn::Mask<DI> SymbolsOf(VI k, SymbolLanes& lanes, uint8_t* symbols, int32_t* points) {
  const DI di;
  const VI one = hn::Set(di, 1);
  const VI high = hn::Shr(k, lanes.low_bits);
  const VI magnitude = hn::Abs(high);
  VI reach = lanes.reach[0];
  VI quantizer = hn::Zero(di);
  if constexpr (kTrellis) {
    quantizer = hn::ShiftRight<1>(lanes.state);
    reach = hn::IfThenElse(hn::Eq(quantizer, one), lanes.reach[1], lanes.reach[0]);
    const VI odd = hn::And(hn::Xor(k, lanes.state), one);
    lanes.state = hn::Or(hn::Add(odd, odd), quantizer);
  }
  const auto escape = hn::Gt(magnitude, reach);
  VI symbol = hn::Sub(hn::Add(magnitude, magnitude), hn::IfThenElseZero(hn::Gt(high, hn::Zero(di)), one));
  symbol = hn::IfThenElse(escape, hn::Set(di, kEscape), symbol);
  symbol = hn::Or(symbol, hn::ShiftLeft<7>(quantizer));
  StoreAt(hn::U8FromU32(hn::BitCast(DU(), symbol)), DU8(), symbols);
  if (points != nullptr) {
    const VI nearer = hn::Max(hn::Min(k, quantizer), hn::Neg(quantizer));
    hn::StoreU(hn::Sub(hn::Add(k, k), nearer), di, points);
  }
  return escape;
}

// Bit `first` + i for lane i.
HWY_INLINE uint32_t BitsFrom(hn::Mask<DI> mask, size_t first) {
  uint8_t bytes[8];  // as Highway asks for
  hn::StoreMaskBits(DI(), mask, bytes);
  uint32_t bits = bytes[0];
  if constexpr (kLanes > 8) bits |= uint32_t{bytes[1]} << 8;
  return bits << first;
}

// StripSymbols of kBesideChannels channels.
template <bool kTrellis>
void SymbolsBeside(const StripTables& tables, const int32_t* k, size_t tokens, size_t channels, size_t first,
                   StripStates* states, uint8_t* symbols, uint32_t* escapes, int32_t* points) {
  const DI di;
  static_assert(kBeside <= 2);
  SymbolLanes lanes[] = {{tables, channels, first, states},
                         {tables, channels, first + kBesideChannels - kLanes, states}};
  for (size_t t = 0; t < tokens; ++t) {
    uint32_t escaped = 0;
#pragma GCC unroll 2
    for (size_t v = 0; v < kBeside; ++v) {
      const size_t at = t * kStripChannels + first + v * kLanes;
      int32_t* const to = points != nullptr ? points + at : nullptr;
      escaped |= BitsFrom(SymbolsOf<kTrellis>(hn::LoadU(di, k + at), lanes[v], symbols + at, to), v * kLanes);
    }
    escapes[t] |= escaped << first;
  }
  if constexpr (kTrellis) {
    for (size_t v = 0; v < kBeside; ++v) {
      StoreAt(hn::U8FromU32(hn::BitCast(DU(), lanes[v].state)), DU8(), states->data() + first + v * kLanes);
    }
  }
}

// What kLanes channels of a strip are decoded to goes to values of a dtype, or nowhere.
struct NotPlaced {
  NotPlaced(const PlainStrip&, size_t) {}
  HWY_INLINE void operator()(size_t, VI) const {}
};
template <DType kT>
class Placed {
 public:
  Placed(const PlainStrip& strip, size_t first)
      : mean_(hn::LoadU(DF(), strip.placed_means + first)),
        unit_(hn::Set(DF(), strip.unit)),
        to_(static_cast<uint8_t*>(strip.placed.first) + first * sizeof(Bits<kT>)),
        stride_(strip.placed.stride * sizeof(Bits<kT>)) {}
  HWY_INLINE void operator()(size_t token, VI k) const {
    const DF df;
    const VF point = hn::ConvertTo(df, hn::Add(k, k));
    StoreLimited<kT>(df, hn::Add(hn::Mul(point, unit_), mean_), to_ + token * stride_);
  }

 private:
  const VF mean_, unit_;
  uint8_t* const to_;
  const size_t stride_;
};

// How kLanes channels are quantized, coded and placed.
template <class Place>
struct PlainLanes {
  SymbolLanes lanes;
  VF mean;
  Place place;

  PlainLanes(const StripTables& tables, const PlainStrip& strip, size_t first)
      : lanes(tables, kStripChannels, first, nullptr),
        mean(hn::LoadU(DF(), strip.means + first)),
        place(strip, first) {}
};

// PlainSymbols of kBesideChannels channels.
template <class Place>
void PlainSymbolsBeside(const StripTables& tables, const PlainStrip& strip, size_t first, int32_t* k, uint8_t* symbols,
                        uint32_t* escapes) {
  const DF df;
  const DI di;
  static_assert(kBeside <= 2);
  PlainLanes<Place> lanes[] = {{tables, strip, first}, {tables, strip, first + kBesideChannels - kLanes}};
  const VF factor = hn::Set(df, strip.factor);
  for (size_t t = 0; t < strip.tokens; ++t) {
    const float* const values = strip.values + t * strip.stride + first;
    const size_t at = t * kStripChannels + first;
    VI own[kBeside];
    uint32_t escaped = 0;
#pragma GCC unroll 2
    for (size_t v = 0; v < kBeside; ++v) {
      const VF y = hn::Mul(hn::Sub(hn::LoadU(df, values + v * kLanes), lanes[v].mean), factor);
      own[v] = Nearest(hn::Mul(y, hn::Set(df, 0.5f)));
      escaped |= BitsFrom(SymbolsOf<false>(own[v], lanes[v].lanes, symbols + at + v * kLanes, nullptr), v * kLanes);
      lanes[v].place(t, own[v]);
    }
    if (HWY_LIKELY(escaped == 0 && !tables.has_low_bits)) continue;
    escapes[t] |= escaped << first;
    for (size_t v = 0; v < kBeside; ++v) hn::StoreU(own[v], di, k + at + v * kLanes);
  }
}

}  // namespace

void QuantizeAll(const float* y, size_t tokens, uint32_t* decisions, int32_t* k) {
  for (size_t c = 0; c < kStripChannels; c += kBesideChannels) QuantizeBeside(y + c, tokens, decisions, k + c);
}

void QuantizePlainAll(const float* y, size_t tokens, int32_t* k) {
  const DF df;
  for (size_t i = 0; i < tokens * kStripChannels; i += kLanes) {
    hn::StoreU(Nearest(hn::Mul(hn::LoadU(df, y + i), hn::Set(df, 0.5f))), DI(), k + i);
  }
}

void SymbolsAll(const StripTables& tables, const int32_t* k, size_t tokens, size_t channels, StripStates* states,
                uint8_t* symbols, uint32_t* escapes, int32_t* points) {
  std::fill_n(escapes, tokens, 0u);
  const auto symbols_beside = states != nullptr ? SymbolsBeside<true> : SymbolsBeside<false>;
  for (size_t first = 0; first < channels; first += kBesideChannels) {
    symbols_beside(tables, k, tokens, channels, first, states, symbols, escapes, points);
  }
}

void PlainSymbolsAll(const StripTables& tables, const PlainStrip& strip, int32_t* k, uint8_t* symbols,
                     uint32_t* escapes) {
  std::fill_n(escapes, strip.tokens, 0u);
  for (size_t first = 0; first < kStripChannels; first += kBesideChannels) {
    if (strip.unit == 0) {
      PlainSymbolsBeside<NotPlaced>(tables, strip, first, k, symbols, escapes);
      continue;
    }
    VisitDType(strip.placed.dtype,
               [&](auto type) { PlainSymbolsBeside<Placed<type>>(tables, strip, first, k, symbols, escapes); });
  }
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(QuantizeAll);
HWY_EXPORT(QuantizePlainAll);
HWY_EXPORT(SymbolsAll);
HWY_EXPORT(PlainSymbolsAll);

void TrellisQuantize(const float* y, size_t tokens, uint32_t* decisions, int32_t* k) {
  HWY_DYNAMIC_DISPATCH(QuantizeAll)(y, tokens, decisions, k);
}

void PlainQuantize(const float* y, size_t tokens, int32_t* k) { HWY_DYNAMIC_DISPATCH(QuantizePlainAll)(y, tokens, k); }

void PlainSymbols(const StripTables& tables, const PlainStrip& strip, int32_t* k, uint8_t* symbols, uint32_t* escapes) {
  HWY_DYNAMIC_DISPATCH(PlainSymbolsAll)(tables, strip, k, symbols, escapes);
}

void StripSymbols(const StripTables& tables, const int32_t* k, size_t tokens, size_t channels, StripStates* states,
                  uint8_t* symbols, uint32_t* escapes, int32_t* points) {
  HWY_DYNAMIC_DISPATCH(SymbolsAll)(tables, k, tokens, channels, states, symbols, escapes, points);
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
