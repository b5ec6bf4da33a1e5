#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/channel_rans_encode.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/simd/channel_rans-inl.h"
#include "core/simd/channel_rans.h"
#include "core/simd/channel_rans_few.h"
#include "core/simd/rans-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {

#if KVC_TARGET_RANS
namespace {

template <size_t kStateVectors, bool kHasLowBits, LookUps kLookUps>
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
      next[v] = EntriesAt<kLookUps>(base, hn::Add(symbol, places[v]));
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

}  // namespace

// Whole strips, in half as many lanes as channels or more.
bool EncodeInVectors(const StripTables& tables, const uint8_t* symbols, const int32_t* k, size_t tokens,
                     ChannelRansEncoder& encoder) {
  return WithStateVectors(encoder.lanes, [&](auto vectors) HWY_ATTR {
    return WithLookUps<LookUps::kLanes>([&](auto look_ups) HWY_ATTR {
      return tables.has_low_bits ? EncodeTokens<vectors, true, look_ups>(tables, symbols, k, tokens, encoder)
                                 : EncodeTokens<vectors, false, look_ups>(tables, symbols, k, tokens, encoder);
    });
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

#endif

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(EncodeInVectors);

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

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
