#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/channel_rans_decode.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <bit>
#include <type_traits>

#include "core/simd/channel_rans-inl.h"
#include "core/simd/channel_rans.h"
#include "core/simd/channel_rans_few.h"
#include "core/simd/rans-inl.h"
#include "core/simd/segment_values.h"
#include "core/simd/trellis.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {

#if KVC_TARGET_RANS
namespace {

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
template <bool kTrellis, LookUps kLookUps>
HWY_INLINE VI SlotEntries(const uint32_t* base, VI index, VI state) {
  if constexpr (!kTrellis) return EntriesAt<kLookUps>(base, index);
#if KVC_TARGET_AVX512
  return EitherAt(base, index, hn::Gt(state, hn::Set(DI(), 1)));
#else
  return EntriesAt<kLookUps>(base, hn::Add(index, hn::ShiftRight<1>(state)));
#endif
}

#if KVC_TARGET_AVX512
// The symbols of these states, which are taken from them, and which states need a word: with a gather of both
// quantizers' symbols, which does not wait for the trellis's states, and one of what these take. The tables of the
// former are a quarter of those that have all at once, which the first cache does not hold for more than one class of
// channels.
template <bool kTrellis>
HWY_INLINE VI GatherSymbols(const StripTables& tables, VI places, VI machine, VI& state, unsigned& bits) {
  const DI di;
  const VI bytes_before = hn::ShiftLeft<2>(places);
  const VI slot = hn::And(state, hn::Set(di, kRansSlots - 1));
  const VI both = GatherAt(tables.all->symbols_at.data(), hn::Add(hn::Add(slot, slot), bytes_before));
  const VI own = kTrellis ? hn::Shr(both, hn::ShiftLeft<3>(hn::ShiftRight<1>(machine))) : both;
  const VI byte = hn::And(own, hn::Set(di, 0xff));
  const VI entry = GatherAt(tables.all->symbols.data(), hn::Add(hn::ShiftLeft<2>(byte), bytes_before));
  const VI product = hn::Mul(hn::And(entry, hn::Set(di, 0xffff)), hn::ShiftRight<kRansBits>(state));
  state = hn::Add(product, hn::Sub(slot, hn::ShiftRight<16>(entry)));
  bits = BitsOf(hn::Lt(state, hn::Set(di, kRansLow)));
  return hn::And(byte, hn::Set(di, kOddQuantizer - 1));
}
#endif

// Likewise by any way.
template <bool kTrellis, LookUps kLookUps>
HWY_INLINE VI TakeSymbols(const StripTables& tables, VI places, VI machine, VI& state, unsigned& bits) {
  const DI di;
#if KVC_TARGET_AVX512
  if constexpr (kLookUps == LookUps::kGather) return GatherSymbols<kTrellis>(tables, places, machine, state, bits);
#endif
  const VI slot = hn::And(hn::Add(state, state), hn::Set(di, 2 * (kRansSlots - 1)));
  const VI entry = SlotEntries<kTrellis, kLookUps>(tables.all->slots[0].data(), hn::Add(slot, places), machine);
  bits = DecodeEntries(entry, state);
  return hn::BitCast(di, hn::ShiftRight<24>(hn::BitCast(DU(), entry)));
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

// Places what the points of tokens become, one token after the other.
class TokenPlacer {
 public:
  explicit HWY_INLINE TokenPlacer(const Placing& placing)
      : unit_(hn::Set(DF(), placing.unit)),
        dtype_(placing.values.dtype),
        stride_(placing.values.stride * DTypeSize(dtype_)),
        to_(static_cast<uint8_t*>(placing.values.first)) {
    Unrolled<kVectors>([&](auto v) KVC_WITHIN { means_[v] = hn::LoadU(DF(), placing.means + v * kLanes); });
  }

  // Next the token with these points.
  HWY_INLINE void operator()(const VI (&points)[kVectors]) {
    // A branch that always goes one way, in place of as many bodies of the loop around it.
    if (dtype_ == DType::kF16) {
      Store<DType::kF16>(points);
    } else if (dtype_ == DType::kBF16) {
      Store<DType::kBF16>(points);
    } else {
      Store<DType::kF32>(points);
    }
    to_ += stride_;
  }

 private:
  template <DType kT>
  HWY_INLINE void Store(const VI (&points)[kVectors]) const {
    const DF df;
    Unrolled<kVectors>([&](auto v) KVC_WITHIN {
      const VF scaled = hn::Mul(hn::ConvertTo(df, points[v]), unit_);
      StoreLimited<kT>(df, hn::Add(scaled, means_[v]), to_ + v * kLanes * sizeof(Bits<kT>));
    });
  }

  VF means_[kVectors];
  const VF unit_;
  const DType dtype_;
  const size_t stride_;
  uint8_t* to_;
};

// Vectors of lanes are in falling order, as words are popped.
template <size_t kStateVectors, bool kTrellis, bool kHasLowBits, LookUps kLookUps>
size_t DecodeTokens(const StripTables& tables, size_t tokens, StripStates* trellis, ChannelRansDecoder& decoder,
                    EscapeReader& escapes, const Placing& placing, bool* ok) {
  constexpr size_t kGroup = GroupVectors(kStateVectors);
  const DI di;
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
  TokenPlacer place(placing);
  const uint8_t* end = decoder.words + decoder.size;
  const uint8_t* const last = decoder.words + MaxTokenBytes(tables);
  size_t t = 0;
  for (; t < tokens && end >= last && *ok; ++t) {
    VI symbol[kVectors], value[kVectors], points[kVectors];
    VI largest = hn::Zero(di);
    Unrolled<kVectors / kGroup>([&](auto group) KVC_WITHIN {
      constexpr size_t first = kGroup * group;
      Unrolled<kGroup>([&](auto i) KVC_WITHIN {
        constexpr size_t s = kGroup - 1 - i, v = first + s;
        unsigned bits;
        symbol[v] = TakeSymbols<kTrellis, kLookUps>(tables, places[v], machine[v], states.lanes[s], bits);
        value[v] = hn::Zero(di);
        largest = hn::Max(largest, symbol[v]);
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
    if (HWY_UNLIKELY(!hn::AllFalse(di, hn::Eq(largest, hn::Set(di, kEscape))))) {
      int32_t row[kStripChannels];
      *ok = PassEscapes<kTrellis, kHasLowBits>(tables, symbol, value, low, escapes, machine, row);
      Unrolled<kVectors>([&](auto v) KVC_WITHIN { points[v] = hn::LoadU(di, row + v * kLanes); });
    } else {
      Unrolled<kVectors>([&](auto v) KVC_WITHIN {
        points[v] = hn::Reverse(di, PassToken<kTrellis, kHasLowBits>(symbol[v], value[v], low[v], machine[v]));
      });
    }
    place(points);
  }
  states.Reverse();
  states.StoreTo(decoder.states.data());
  if constexpr (kTrellis) StoreMachine(machine, *trellis);
  decoder.size = static_cast<size_t>(end - decoder.words);
  return t;
}

}  // namespace

// Whole strips, in half as many lanes as channels or more; leaves tokens undone for which the words that are left might
// not suffice.
size_t DecodeInVectors(const StripTables& tables, size_t tokens, StripStates* states, ChannelRansDecoder& decoder,
                       EscapeReader& escapes, const Placing& placing, bool* ok) {
  return WithStateVectors(decoder.lanes, [&](auto vectors) HWY_ATTR {
    const auto decode = [&](auto trellis, auto low_bits) HWY_ATTR {
      return WithLookUps<LookUps::kAwaitedLanes>([&](auto look_ups) HWY_ATTR {
        return DecodeTokens<vectors, trellis, low_bits, look_ups>(tables, tokens, states, decoder, escapes, placing,
                                                                  ok);
      });
    };
    const auto decode_with = [&](auto trellis) HWY_ATTR {
      return tables.has_low_bits ? decode(trellis, std::true_type()) : decode(trellis, std::false_type());
    };
    return states != nullptr ? decode_with(std::true_type()) : decode_with(std::false_type());
  });
}

#else

size_t DecodeInVectors(const StripTables& tables, size_t tokens, StripStates* states, ChannelRansDecoder& decoder,
                       EscapeReader& escapes, const Placing& placing, bool* ok) {
  if (!AreFewLanes(decoder.lanes, kStripChannels)) return 0;
  return internal::PlacePieces(tokens, kStripChannels, placing, ok, [&](size_t count, int32_t* points) {
    return DecodeFewLanes(tables, count, kStripChannels, states, decoder, escapes, points, ok);
  });
}

#endif

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

namespace {

using internal::PlacePieces;

HWY_EXPORT(DecodeInVectors);

// Returns how many tokens it has decoded: not those for which the words that are left might not suffice, and none of
// strips that there is nothing faster for than their definition.
size_t DecodeFast(const StripTables& tables, size_t tokens, size_t channels, StripStates* states,
                  ChannelRansDecoder& decoder, EscapeReader& escapes, const Placing& placing, bool* ok) {
  if (FillVectors(decoder.lanes, channels)) {
    return HWY_DYNAMIC_DISPATCH(DecodeInVectors)(tables, tokens, states, decoder, escapes, placing, ok);
  }
  if (!AreFewLanes(decoder.lanes, channels)) return 0;
  return PlacePieces(tokens, channels, placing, ok, [&](size_t count, int32_t* points) {
    return DecodeFewLanes(tables, count, channels, states, decoder, escapes, points, ok);
  });
}

// Likewise the last words, fewer than MaxTokenBytes, of which there may be many tokens: as many bytes before them as a
// token takes let them suffice. *ok becomes false where these are needed.
size_t DecodeLastWords(const StripTables& tables, size_t tokens, size_t channels, StripStates* states,
                       ChannelRansDecoder& decoder, EscapeReader& escapes, const Placing& placing, bool* ok) {
  const size_t before = MaxTokenBytes(tables);
  if (decoder.size >= before) return 0;
  std::array<uint8_t, 2 * kMostTokenBytes> words = {};
  std::copy_n(decoder.words, decoder.size, words.data() + before);
  ChannelRansDecoder last = decoder;
  last.words = words.data();
  last.size = before + decoder.size;
  const size_t done = DecodeFast(tables, tokens, channels, states, last, escapes, placing, ok);
  *ok = *ok && last.size >= before;
  decoder.states = last.states;
  decoder.size = last.size - std::min(before, last.size);
  return done;
}

// Any words and strips.
size_t DecodeByDefinition(const StripTables& tables, size_t tokens, size_t channels, StripStates* states,
                          ChannelRansDecoder& decoder, EscapeReader& escapes, const Placing& placing, bool* ok) {
  return PlacePieces(tokens, channels, placing, ok, [&](size_t count, int32_t* points) {
    *ok = scalar::DecodeStrip(tables, count, channels, states, decoder, escapes, points);
    return count;
  });
}

}  // namespace

bool DecodeStrip(const StripTables& tables, size_t tokens, size_t channels, StripStates* states,
                 ChannelRansDecoder& decoder, EscapeReader& escapes, const Placing& placing) {
  bool ok = true;
  size_t done = 0;
  for (const auto decode : {DecodeFast, DecodeLastWords, DecodeByDefinition}) {
    const Placing rest{placing.values.After(done), placing.unit, placing.means};
    done += decode(tables, tokens - done, channels, states, decoder, escapes, rest, &ok);
    if (done == tokens || !ok) break;
  }
  return ok;
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
