#include "core/simd/channel_rans_few.h"

#include <algorithm>
#include <type_traits>

#include "core/simd/rans_words.h"

namespace kvcompress::simd {
namespace {

using internal::ForLanesDown;
using internal::ForLanesUp;
using internal::WordReader;
using internal::WordWriter;

// Calls `body` with the number of lanes as a constant.
template <class Body>
auto WithLanes(size_t lanes, Body body) {
  switch (lanes) {
    case 1: return body(std::integral_constant<size_t, 1>());
    case 2: return body(std::integral_constant<size_t, 2>());
    case 4: return body(std::integral_constant<size_t, 4>());
    case 8: return body(std::integral_constant<size_t, 8>());
    case 16: return body(std::integral_constant<size_t, 16>());
    default: return body(std::integral_constant<size_t, 32>());
  }
}

template <size_t kLanes>
bool EncodeTokens(const StripTables& tables, const uint8_t* symbols, const int32_t* k, size_t tokens, size_t channels,
                  ChannelRansEncoder& encoder) {
  uint32_t x[kLanes];
  std::copy_n(encoder.states.data(), kLanes, x);
  WordWriter words{encoder.out + encoder.size};
  const uint8_t* const end = encoder.out + encoder.capacity;
  while (tokens-- > 0) {
    if (static_cast<size_t>(end - words.end) < MaxTokenBytes(tables)) return false;
    const uint8_t* const row = symbols + tokens * kStripChannels;
    for (size_t first = channels; first > 0;) {
      first -= kLanes;
      if (tables.has_low_bits) {
        const int32_t* const values = k + tokens * kStripChannels + first;
        for (size_t i = 0; i < kLanes; ++i) words.EncodeBits(values[i], tables.LowerBits(first + i), x[i]);
        for (size_t i = 0; i < kLanes; ++i) {
          words.EncodeBits(values[i] >> kLowBitsAtOnce, tables.UpperBits(first + i), x[i]);
        }
      }
      ForLanesUp<kLanes>([&](size_t i) { words.EncodeSymbol(tables[first + i].symbols[row[first + i]], x[i]); });
    }
  }
  std::copy_n(x, kLanes, encoder.states.data());
  encoder.size = static_cast<size_t>(words.end - encoder.out);
  return true;
}

// The states of a strip's trellises, and where the symbols of the quantizers that they mean are, by slot.
struct Machine {
  StripStates states = {};
  const ChannelTable* tables[kStripChannels];
  uint8_t quantizers[kStripChannels];

  Machine(const StripTables& strip, const StripStates* from) {
    if (from != nullptr) states = *from;
    for (size_t c = 0; c < kStripChannels; ++c) tables[c] = &strip[c];
    FindQuantizers();
  }

  void FindQuantizers() {
    for (size_t c = 0; c < kStripChannels; ++c) quantizers[c] = static_cast<uint8_t>(QuantizerOf(states[c]));
  }

  // By the symbol, of which tables stay in the first cache where those of entries by slot do not.
  uint8_t Decode(size_t c, WordReader& words, uint32_t& x) const {
    const uint32_t slot = x % kRansSlots;
    const ChannelTable& table = *tables[c];
    const uint8_t byte = reinterpret_cast<const uint8_t*>(&table.symbols_at[slot])[quantizers[c]];
    const uint32_t entry = table.symbols[byte];
    x = (entry & 0xffff) * (x >> kRansBits) + slot - (entry >> 16);
    words.Refill(x);
    return byte & static_cast<uint8_t>(~kOddQuantizer);
  }

  // Symbols, none of which is an escape, as points, and the states passed on. In bytes, for vectors of all channels.
  template <bool kTrellis>
  void Pass(const uint8_t* symbols, int32_t* points) {
    int8_t small[kStripChannels];
    for (size_t c = 0; c < kStripChannels; ++c) {
      const auto magnitude = static_cast<uint8_t>((symbols[c] + 1) >> 1);
      auto point = static_cast<uint8_t>(2 * magnitude);
      if constexpr (kTrellis) {
        const auto high = static_cast<uint8_t>(states[c] >> 1);
        point = static_cast<uint8_t>(point - std::min(high, magnitude));
        states[c] = static_cast<uint8_t>(((magnitude ^ states[c]) & 1) << 1 | high);
      }
      const auto sign = static_cast<uint8_t>((symbols[c] & 1) - 1);  // even symbols are negative
      small[c] = static_cast<int8_t>((point ^ sign) - sign);
    }
    std::copy_n(small, kStripChannels, points);
    if constexpr (kTrellis) FindQuantizers();
  }
};

bool HasEscape(const uint8_t* symbols) {
  uint8_t has = 0;
  for (size_t c = 0; c < kStripChannels; ++c) has |= static_cast<uint8_t>(symbols[c] == kEscape);
  return has != 0;
}

template <size_t kLanes, bool kTrellis>
size_t DecodeTokens(const StripTables& tables, size_t tokens, size_t channels, StripStates* states,
                    ChannelRansDecoder& decoder, EscapeReader& escapes, int32_t* points, bool* ok) {
  uint32_t x[kLanes];
  std::copy_n(decoder.states.data(), kLanes, x);
  WordReader words{decoder.words + decoder.size};
  const uint8_t* const last = decoder.words + MaxTokenBytes(tables);
  Machine machine(tables, kTrellis ? states : nullptr);
  uint8_t symbols[kStripChannels] = {};
  size_t t = 0;
  for (; t < tokens && words.end >= last && *ok; ++t) {
    int32_t* const row = points + t * kStripChannels;
    for (size_t first = 0; first < channels; first += kLanes) {
      ForLanesDown<kLanes>([&](size_t i) { symbols[first + i] = machine.Decode(first + i, words, x[i]); });
      if (!tables.has_low_bits) continue;
      std::fill_n(row + first, kLanes, 0);
      for (size_t i = kLanes; i-- > 0;) words.DecodeBits(tables.UpperBits(first + i), x[i], row[first + i]);
      for (size_t i = kLanes; i-- > 0;) words.DecodeBits(tables.LowerBits(first + i), x[i], row[first + i]);
    }
    if (!tables.has_low_bits && !HasEscape(symbols)) {
      machine.Pass<kTrellis>(symbols, row);
      continue;
    }
    if (!tables.has_low_bits) std::fill_n(row, channels, 0);
    *ok = scalar::PassToken(tables, symbols, channels, kTrellis ? &machine.states : nullptr, escapes, row);
    machine.FindQuantizers();
  }
  std::copy_n(x, kLanes, decoder.states.data());
  decoder.size = static_cast<size_t>(words.end - decoder.words);
  if constexpr (kTrellis) *states = machine.states;
  return t;
}

}  // namespace

bool EncodeFewLanes(const StripTables& tables, const uint8_t* symbols, const int32_t* k, size_t tokens, size_t channels,
                    ChannelRansEncoder& encoder) {
  return WithLanes(encoder.lanes,
                   [&](auto lanes) { return EncodeTokens<lanes>(tables, symbols, k, tokens, channels, encoder); });
}

size_t DecodeFewLanes(const StripTables& tables, size_t tokens, size_t channels, StripStates* states,
                      ChannelRansDecoder& decoder, EscapeReader& escapes, int32_t* points, bool* ok) {
  return WithLanes(decoder.lanes, [&](auto lanes) {
    const auto decode = states != nullptr ? DecodeTokens<lanes, true> : DecodeTokens<lanes, false>;
    return decode(tables, tokens, channels, states, decoder, escapes, points, ok);
  });
}

}  // namespace kvcompress::simd
