#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/trellis.cc"
#include "core/simd/trellis.h"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "core/simd/half-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

using VI = hn::Vec<DI>;
using MI = hn::Mask<DI>;
using DU8 = hn::Rebind<uint8_t, DU>;

// Vectors of channels that are worked on side by side, so that each hides the others' latency.
constexpr size_t kBeside = 2;
constexpr size_t kBesideChannels = kBeside * kLanes;
// A bit for each of these channels.
using ChannelBits = std::conditional_t<kLanes == 16, uint32_t, std::conditional_t<kLanes == 8, uint16_t, uint8_t>>;
static_assert(8 * sizeof(ChannelBits) == kBesideChannels);

HWY_INLINE ChannelBits BitsOf(const MI (&masks)[kBeside]) {
#if KVC_TARGET_AVX512
  return _cvtmask32_u32(_mm512_kunpackw(masks[1].raw, masks[0].raw));
#else
  uint32_t bits = 0;
  for (size_t v = 0; v < kBeside; ++v) {
    uint8_t bytes[8];  // as Highway asks for
    hn::StoreMaskBits(DI(), masks[v], bytes);
    bits |= uint32_t{bytes[0]} << (v * kLanes);
  }
  return static_cast<ChannelBits>(bits);
#endif
}

// The lanes of vector v.
HWY_INLINE MI MaskOf(ChannelBits bits, size_t v) {
#if KVC_TARGET_AVX512
  return MI{static_cast<__mmask16>(bits >> (v * kLanes))};
#else
  const uint8_t bytes[8] = {static_cast<uint8_t>(bits >> (v * kLanes))};
  return hn::LoadMaskBits(DI(), bytes);
#endif
}

// What is to be quantized of kBeside vectors of channels.
struct Source {
  const float* values;
  size_t stride;
  VF means[kBeside];
  VF factor;

  HWY_INLINE Source(const StripSpan& span, size_t first)
      : values(span.values + first), stride(span.stride), factor(hn::Set(DF(), span.factor)) {
    for (size_t v = 0; v < kBeside; ++v) means[v] = hn::LoadU(DF(), span.means + first + v * kLanes);
  }
  HWY_INLINE VF operator()(size_t token, size_t v) const {
    return hn::Mul(hn::Sub(hn::LoadU(DF(), values + token * stride + v * kLanes), means[v]), factor);
  }
};

// The step of scalar::TrellisForward for a vector of channels; which states' second ways are cheaper.
HWY_INLINE void Step(VF y, VF (&cost)[4], MI (&seconds)[4]) {
  const DF df;
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
#pragma GCC unroll 4
  for (int s = 0; s < 4; ++s) {
    seconds[s] = hn::RebindMask(DI(), hn::Lt(second[s], first[s]));
    cost[s] = hn::Min(second[s], first[s]);
  }
}

// TrellisForward of kBesideChannels channels.
void ForwardBeside(const StripSpan& span, size_t first, TrellisCosts& costs, uint8_t* decisions) {
  const DF df;
  const Source source(span, first);
  VF cost[kBeside][4];
  for (size_t s = 0; s < 4; ++s) {
    for (size_t v = 0; v < kBeside; ++v) cost[v][s] = hn::LoadU(df, costs.of_state[s] + first + v * kLanes);
  }
  for (size_t t = 0; t < span.tokens; ++t) {
    MI seconds[kBeside][4];
#pragma GCC unroll 2
    for (size_t v = 0; v < kBeside; ++v) Step(source(t, v), cost[v], seconds[v]);
#pragma GCC unroll 4
    for (size_t s = 0; s < 4; ++s) {
      const ChannelBits bits = BitsOf({seconds[0][s], seconds[1][s]});
      std::memcpy(decisions + t * sizeof(TrellisDecisions) + s * sizeof(uint32_t), &bits, sizeof(bits));
    }
  }
  for (size_t s = 0; s < 4; ++s) {
    for (size_t v = 0; v < kBeside; ++v) hn::StoreU(cost[v][s], df, costs.of_state[s] + first + v * kLanes);
  }
}

// scalar::ValueFor of a vector.
HWY_INLINE VI ValueFor(VF y, MI odd, MI quantizer) {
  const DF df;
  const DI di;
  const VF a = hn::Abs(y);
  const VF even_shift = hn::IfThenElseZero(hn::RebindMask(df, quantizer), hn::Set(df, 1));
  const VF shift = hn::IfThenElse(hn::RebindMask(df, odd), hn::Sub(even_shift, hn::Set(df, 2)), even_shift);
  const VI half = Nearest(hn::Mul(hn::Add(a, shift), hn::Set(df, 0.25f)));
  const VI value = hn::Or(hn::Add(half, half), hn::IfThenElseZero(odd, hn::Set(di, 1)));
  const MI is_small = hn::RebindMask(di, hn::Lt(a, hn::Set(df, 1.5f)));
  const MI is_zero = hn::And(hn::AndNot(odd, quantizer), is_small);
  const VI sign = hn::ShiftRight<31>(hn::BitCast(di, y));
  return hn::Sub(hn::Xor(hn::IfThenZeroElse(is_zero, value), sign), sign);
}

// How kLanes channels of a strip are coded.
struct SymbolLanes {
  VI low_bits, reach[2];

  SymbolLanes(const StripTables& tables, size_t first) {
    const DI di;
    HWY_ALIGN int32_t lanes[2][kLanes];
    for (size_t i = 0; i < kLanes; ++i) {
      for (size_t q = 0; q < 2; ++q) lanes[q][i] = tables[first + i].reach[q];
    }
    low_bits = hn::LoadU(di, tables.low_bits.data() + first);
    reach[0] = hn::Load(di, lanes[0]);
    reach[1] = hn::Load(di, lanes[1]);
  }
};

// The symbols of kLanes channels of a token; returns which are escapes. Of the first quantizer, if not kTrellis.
template <bool kTrellis>
HWY_INLINE MI SymbolsOf(VI k, MI quantizer, const SymbolLanes& lanes, uint8_t* symbols) {
  const DI di;
  const VI one = hn::Set(di, 1);
  const VI high = hn::Shr(k, lanes.low_bits);
  const VI magnitude = hn::Abs(high);
  const VI reach = kTrellis ? hn::IfThenElse(quantizer, lanes.reach[1], lanes.reach[0]) : lanes.reach[0];
  const MI escape = hn::Gt(magnitude, reach);
  VI symbol = hn::Sub(hn::Add(magnitude, magnitude), hn::IfThenElseZero(hn::Gt(high, hn::Zero(di)), one));
  symbol = hn::IfThenElse(escape, hn::Set(di, kEscape), symbol);
  if constexpr (kTrellis) symbol = hn::Or(symbol, hn::IfThenElseZero(quantizer, hn::Set(di, kOddQuantizer)));
  StoreAt(hn::U8FromU32(hn::BitCast(DU(), symbol)), DU8(), symbols);
  return escape;
}

// What kLanes channels of a strip are decoded to goes to values of a dtype, or nowhere.
struct NotPlaced {
  NotPlaced(const Placing&, size_t) {}
  template <bool kTrellis>
  HWY_INLINE void Place(size_t, VI, MI) const {}
};
template <DType kT>
class Placed {
 public:
  Placed(const Placing& placing, size_t first)
      : mean_(hn::LoadU(DF(), placing.means + first)),
        unit_(hn::Set(DF(), placing.unit)),
        to_(static_cast<uint8_t*>(placing.values.first) + first * sizeof(Bits<kT>)),
        stride_(placing.values.stride * sizeof(Bits<kT>)) {}
  template <bool kTrellis>
  HWY_INLINE void Place(size_t token, VI k, MI quantizer) const {
    const DF df;
    const DI di;
    VI point = hn::Add(k, k);
    if constexpr (kTrellis) {
      const VI sign = hn::Max(hn::Min(k, hn::Set(di, 1)), hn::Set(di, -1));
      point = hn::Sub(point, hn::IfThenElseZero(quantizer, sign));
    }
    const VF scaled = hn::Mul(hn::ConvertTo(df, point), unit_);
    StoreLimited<kT>(df, hn::Add(scaled, mean_), to_ + token * stride_);
  }

 private:
  const VF mean_, unit_;
  uint8_t* const to_;
  const size_t stride_;
};

// Codes and places kBesideChannels channels of tokens.
template <bool kTrellis, class Place>
class Coder {
 public:
  Coder(const StripTables& tables, const StripSpan& span, size_t first, const CodedSymbols& out)
      : lanes_{{tables, first}, {tables, first + kLanes}},
        places_{{span.placing, first}, {span.placing, first + kLanes}},
        first_(first),
        out_(out),
        keeps_all_(tables.has_low_bits) {}

  HWY_INLINE void operator()(size_t token, const VI (&k)[kBeside], const MI (&quantizers)[kBeside]) const {
    const size_t at = token * kStripChannels + first_;
    MI escape[kBeside];
#pragma GCC unroll 2
    for (size_t v = 0; v < kBeside; ++v) {
      escape[v] = SymbolsOf<kTrellis>(k[v], quantizers[v], lanes_[v], out_.symbols + at + v * kLanes);
      places_[v].template Place<kTrellis>(token, k[v], quantizers[v]);
    }
    const ChannelBits escapes = BitsOf(escape);
    if (HWY_LIKELY(escapes == 0 && !keeps_all_)) return;
    out_.escapes[token] |= uint32_t{escapes} << first_;
    for (size_t v = 0; v < kBeside; ++v) hn::StoreU(k[v], DI(), out_.k + at + v * kLanes);
  }

 private:
  const SymbolLanes lanes_[kBeside];
  const Place places_[kBeside];
  const size_t first_;
  const CodedSymbols out_;
  const bool keeps_all_;
};

// PlainSymbols of kBesideChannels channels.
template <class Place>
void PlainBeside(const StripTables& tables, const StripSpan& span, size_t first, const CodedSymbols& out) {
  const Source source(span, first);
  const Coder<false, Place> code(tables, span, first, out);
  const MI none = MaskOf(0, 0);
  for (size_t t = 0; t < span.tokens; ++t) {
    VI k[kBeside];
#pragma GCC unroll 2
    for (size_t v = 0; v < kBeside; ++v) k[v] = Nearest(hn::Mul(source(t, v), hn::Set(DF(), 0.5f)));
    code(t, k, {none, none});
  }
}

// TrellisBack of kBesideChannels channels. The states are those of these channels.
template <class Place>
void BackBeside(const StripTables& tables, const StripSpan& span, size_t first, const uint8_t* decisions,
                ChannelBits& end_high, ChannelBits& end_low, const CodedSymbols& out) {
  ChannelBits high = end_high, low = end_low;
  const Source source(span, first);
  const Coder<true, Place> code(tables, span, first, out);
  for (size_t t = span.tokens; t-- > 0;) {
    ChannelBits into[4];
    for (size_t s = 0; s < 4; ++s) {
      std::memcpy(&into[s], decisions + t * sizeof(TrellisDecisions) + s * sizeof(uint32_t), sizeof(ChannelBits));
    }
    const auto either = [](ChannelBits second, ChannelBits a, ChannelBits b) {
      return static_cast<ChannelBits>(a ^ ((a ^ b) & second));
    };
    const ChannelBits second = either(high, either(low, into[0], into[1]), either(low, into[2], into[3]));
    const auto odd = static_cast<ChannelBits>(high ^ second);
    VI k[kBeside];
    MI quantizers[kBeside];
#pragma GCC unroll 2
    for (size_t v = 0; v < kBeside; ++v) {
      quantizers[v] = MaskOf(low, v);
      k[v] = ValueFor(source(t, v), MaskOf(odd, v), quantizers[v]);
    }
    high = low;
    low = second;
    code(t, k, quantizers);
  }
  end_high = high;
  end_low = low;
}

// Calls visit(place) with a type that places as the span says.
template <class Visit>
void WithPlace(const StripSpan& span, Visit visit) {
  if (span.placing.unit == 0) return visit(static_cast<NotPlaced*>(nullptr));
  VisitDType(span.placing.values.dtype, [&](auto type) { visit(static_cast<Placed<type>*>(nullptr)); });
}

}  // namespace

void ForwardAll(const StripSpan& span, TrellisCosts& costs, TrellisDecisions* decisions) {
  auto* const bytes = reinterpret_cast<uint8_t*>(decisions);
  for (size_t first = 0; first < kStripChannels; first += kBesideChannels) {
    ForwardBeside(span, first, costs, bytes + first / 8);
  }
}

TrellisEnds EndsAll(const TrellisCosts& costs) {
  const DF df;
  TrellisEnds ends;
  for (size_t first = 0; first < kStripChannels; first += kBesideChannels) {
    MI high[kBeside], low[kBeside];
    for (size_t v = 0; v < kBeside; ++v) {
      VF cost[4];
      for (size_t s = 0; s < 4; ++s) cost[s] = hn::Load(df, costs.of_state[s] + first + v * kLanes);
      const auto is_high = hn::Lt(hn::Min(cost[2], cost[3]), hn::Min(cost[0], cost[1]));
      const auto is_low =
          hn::Or(hn::And(is_high, hn::Lt(cost[3], cost[2])), hn::AndNot(is_high, hn::Lt(cost[1], cost[0])));
      high[v] = hn::RebindMask(DI(), is_high);
      low[v] = hn::RebindMask(DI(), is_low);
    }
    ends.high |= uint32_t{BitsOf(high)} << first;
    ends.low |= uint32_t{BitsOf(low)} << first;
  }
  return ends;
}

void BackAll(const StripTables& tables, const StripSpan& span, const TrellisDecisions* decisions, TrellisEnds& ends,
             const CodedSymbols& out) {
  std::fill_n(out.escapes, span.tokens, 0u);
  const auto* const bytes = reinterpret_cast<const uint8_t*>(decisions);
  uint32_t high = 0, low = 0;
  for (size_t first = 0; first < kStripChannels; first += kBesideChannels) {
    auto own_high = static_cast<ChannelBits>(ends.high >> first), own_low = static_cast<ChannelBits>(ends.low >> first);
    WithPlace(span, [&](auto* place) {
      using Place = std::remove_pointer_t<decltype(place)>;
      BackBeside<Place>(tables, span, first, bytes + first / 8, own_high, own_low, out);
    });
    high |= uint32_t{own_high} << first;
    low |= uint32_t{own_low} << first;
  }
  ends.high = high;
  ends.low = low;
}

void PlainAll(const StripTables& tables, const StripSpan& span, const CodedSymbols& out) {
  std::fill_n(out.escapes, span.tokens, 0u);
  for (size_t first = 0; first < kStripChannels; first += kBesideChannels) {
    WithPlace(span, [&](auto* place) {
      using Place = std::remove_pointer_t<decltype(place)>;
      PlainBeside<Place>(tables, span, first, out);
    });
  }
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(ForwardAll);
HWY_EXPORT(EndsAll);
HWY_EXPORT(BackAll);
HWY_EXPORT(PlainAll);

void TrellisForward(const StripSpan& span, TrellisCosts& costs, TrellisDecisions* decisions) {
  HWY_DYNAMIC_DISPATCH(ForwardAll)(span, costs, decisions);
}

TrellisEnds CheapestEnds(const TrellisCosts& costs) { return HWY_DYNAMIC_DISPATCH(EndsAll)(costs); }

void TrellisBack(const StripTables& tables, const StripSpan& span, const TrellisDecisions* decisions, TrellisEnds& ends,
                 const CodedSymbols& out) {
  HWY_DYNAMIC_DISPATCH(BackAll)(tables, span, decisions, ends, out);
}

void PlainSymbols(const StripTables& tables, const StripSpan& span, const CodedSymbols& out) {
  HWY_DYNAMIC_DISPATCH(PlainAll)(tables, span, out);
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
