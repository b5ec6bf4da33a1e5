#include "core/simd/channel_rans_few.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

namespace kvcompress::simd {
namespace {

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

// Calls `body` for each lane in rising or falling order. Up to 8 have code of their own, so that their states stay in
// registers.
template <size_t kLanes, class Body>
[[gnu::always_inline]] inline void ForLanesUp(Body body) {
  constexpr size_t kAtOnce = std::min<size_t>(kLanes, 8);
  for (size_t first = 0; first < kLanes; first += kAtOnce) {
    [&]<size_t... kLane>(std::index_sequence<kLane...>) { (body(first + kLane), ...); }
    (std::make_index_sequence<kAtOnce>());
  }
}
template <size_t kLanes, class Body>
[[gnu::always_inline]] inline void ForLanesDown(Body body) {
  ForLanesUp<kLanes>([&](size_t lane) { body(kLanes - 1 - lane); });
}

// 2^43 / f, rounded up, of each frequency f. A state x < 2^19 f times this is less than 2^43 too large, so its upper
// part is x / f, rounded down.
constexpr int kReciprocalBits = 43;
constexpr std::array<uint64_t, kRansSlots + 1> MakeReciprocals() {
  std::array<uint64_t, kRansSlots + 1> made = {};
  for (uint64_t f = 1; f <= kRansSlots; ++f) made[f] = ((uint64_t{1} << kReciprocalBits) + f - 1) / f;
  return made;
}
constexpr std::array<uint64_t, kRansSlots + 1> kReciprocals = MakeReciprocals();

// Which states give or take a word is random, so nothing here branches on it.
struct WordWriter {
  uint8_t* end;

  void Push(bool is_full, uint32_t& x) {
    const auto word = static_cast<uint16_t>(x);
    std::memcpy(end, &word, 2);
    end += 2 * size_t{is_full};
    x >>= 16 * uint32_t{is_full};
  }
  void EncodeSymbol(uint32_t entry, uint32_t& x) {
    const uint32_t frequency = entry & 0xffff;
    Push(x >> 19 >= frequency, x);
    const auto quotient = static_cast<uint32_t>(x * kReciprocals[frequency] >> kReciprocalBits);
    x += quotient * (kRansSlots - frequency) + (entry >> 16);
  }
  void EncodeBits(int32_t value, int32_t bits, uint32_t& x) {
    Push(x >> (31 - bits) != 0, x);
    x = x << bits | (static_cast<uint32_t>(value) & ((1u << bits) - 1));
  }
};

struct WordReader {
  const uint8_t* end;

  // Gives the state a word if it needs one.
  void Refill(uint32_t& x) {
    uint16_t word;
    std::memcpy(&word, end - 2, 2);
    const uint32_t filled = x << 16 | word;
    const uint8_t* const next = end - 2;
#if defined(__x86_64__)
    // Compilers would branch.
    asm("cmpl %[low], %[x]\n\tcmovb %[filled], %[x]\n\tcmovb %[next], %[end]"
        : [x] "+&r"(x), [end] "+&r"(end)
        : [low] "i"(kRansLow), [filled] "r"(filled), [next] "r"(next)
        : "cc");
#else
    const bool is_low = x < kRansLow;
    x = is_low ? filled : x;
    end = is_low ? next : end;
#endif
  }
  uint8_t DecodeSymbol(const uint32_t* slots, uint32_t& x) {
    const uint32_t entry = slots[x % kRansSlots];
    const uint32_t high = x >> kRansBits;
    x = (entry >> 12 & 0xfff) * high + high + (entry & 0xfff);
    Refill(x);
    return static_cast<uint8_t>(entry >> 24);
  }
  void DecodeBits(int32_t bits, uint32_t& x, int32_t& value) {
    value = static_cast<int32_t>((static_cast<uint32_t>(value) << bits) | (x & ((1u << bits) - 1)));
    x >>= bits;
    Refill(x);
  }
};

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

// The states of a strip's trellises, and where the slots of the tables are that they mean.
struct Machine {
  StripStates states = {};
  uint32_t first_slots[kStripChannels];  // of the first quantizers
  uint32_t slots[kStripChannels];

  Machine(const StripTables& tables, const StripStates* from) {
    if (from != nullptr) states = *from;
    for (size_t c = 0; c < kStripChannels; ++c) {
      first_slots[c] = static_cast<uint32_t>(tables.index[c]) * (sizeof(ChannelTable) / sizeof(uint32_t));
    }
    FindSlots();
  }

  void FindSlots() {
    for (size_t c = 0; c < kStripChannels; ++c) {
      slots[c] = first_slots[c] + (static_cast<uint32_t>(QuantizerOf(states[c])) << kRansBits);
    }
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
    if constexpr (kTrellis) FindSlots();
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
  const uint32_t* const base = tables.all->slots[0].data();
  uint8_t symbols[kStripChannels] = {};
  size_t t = 0;
  for (; t < tokens && words.end >= last && *ok; ++t) {
    int32_t* const row = points + t * kStripChannels;
    for (size_t first = 0; first < channels; first += kLanes) {
      ForLanesDown<kLanes>(
          [&](size_t i) { symbols[first + i] = words.DecodeSymbol(base + machine.slots[first + i], x[i]); });
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
    machine.FindSlots();
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
