#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "core/base/dtype.h"
#include "core/simd/rans.h"

// The entropy coder of the codec `transform` (docs/format.md, "transform"): the arithmetic of rans.h, with a table for
// each channel, of which a strip of channels is coded token by token.
//
// A value k is coded as the symbol of its upper part h, and low bits as they are: k = 2^b h + these. Symbols of h = 0,
// 1, -1, 2, -2, ... are 0, 1, 2, 3, 4, ...; kEscape stands for any h that its table does not have. Which of two
// quantizers' tables it is says the trellis (trellis.h).
namespace kvcompress::simd {

// Channels of a strip.
inline constexpr size_t kStripChannels = 32;
inline constexpr size_t kMinVectorLanes = kStripChannels / 2;  // fewer leave vectors half empty
inline constexpr size_t kMaxChannelLanes = 2 * kStripChannels;
inline constexpr uint8_t kEscape = 127;
inline constexpr uint8_t kOddQuantizer = 0x80;  // in a symbol's byte: it is of the second quantizer

constexpr uint8_t SymbolOf(int32_t k) { return static_cast<uint8_t>(k > 0 ? 2 * k - 1 : -2 * k); }
constexpr int32_t ValueOf(uint8_t symbol) { return symbol % 2 != 0 ? (symbol + 1) / 2 : -(symbol / 2); }

// The probabilities of a channel.
struct ChannelTable {
  // By the symbol's byte: its frequency, and 2^16 times its first slot.
  RansSymbolTable symbols;
  // By slot: the byte of the first quantizer's symbol, and 2^8 times that of the second one's. It is small: those of
  // several tables stay in the first cache.
  std::array<uint16_t, kRansSlots> symbols_at;
  // By slot and quantizer: 2^24 times the symbol + 2^12 times (its frequency - 1) + the slot's distance from its first.
  // Both quantizers' can be read at once, so that which of them it is need not be known before.
  std::array<std::array<uint32_t, 2>, kRansSlots> slots;
  // The largest |k| that is no escape, by quantizer.
  std::array<uint8_t, 2> reach;
};
// A state takes or gives so many bits and one word at most. Further ones, the upper ones, come before them.
inline constexpr int32_t kLowBitsAtOnce = 12;
// How the channels of a strip are coded: each by one of `all` tables, with so many low bits.
struct StripTables {
  const ChannelTable* all = nullptr;
  std::array<int32_t, kStripChannels> index = {};
  std::array<int32_t, kStripChannels> low_bits = {};  // at most 2 kLowBitsAtOnce
  bool has_low_bits = false;

  const ChannelTable& operator[](size_t channel) const { return all[index[channel]]; }
  // The upper of a channel's low bits, which come first, and the lower ones.
  int32_t UpperBits(size_t channel) const { return std::max(low_bits[channel] - kLowBitsAtOnce, 0); }
  int32_t LowerBits(size_t channel) const { return std::min(low_bits[channel], kLowBitsAtOnce); }
};
// A trellis's states, 0 to 3, of these channels.
using StripStates = std::array<uint8_t, kStripChannels>;

// Which quantizer a state means, and the state that follows a value of this parity.
constexpr size_t QuantizerOf(uint8_t state) { return state >> 1; }
constexpr uint8_t NextState(uint8_t state, bool odd) {
  constexpr uint8_t kNext[4][2] = {{0, 2}, {2, 0}, {1, 3}, {3, 1}};
  return kNext[state][odd];
}

// Channel c of a strip is coded by the state of lane c mod lanes, lanes being a power of two <= kMaxChannelLanes. Where
// there are more than kStripChannels, the first half of the states is that of the next token to be decoded: the halves
// trade places after each token, so that a token's lookups do not wait for those of the token before it.
struct ChannelRansEncoder {
  size_t lanes;
  uint8_t* out;
  size_t capacity;
  size_t size = 0;  // of what is written
  std::array<uint32_t, kMaxChannelLanes> states;

  ChannelRansEncoder(size_t lane_count, uint8_t* to, size_t room);
  // Writes the states; returns the size of all that is written, 0 when there is no room.
  size_t Finish();
};

struct ChannelRansDecoder {
  size_t lanes = 0;
  const uint8_t* words = nullptr;
  size_t size = 0;  // of the words that are left
  std::array<uint32_t, kMaxChannelLanes> states = {};

  // False when `in` is not what an encoder writes.
  [[nodiscard]] bool Begin(size_t lane_count, const uint8_t* in, size_t in_size);
  // Whether decoding has ended where encoding began.
  [[nodiscard]] bool Finish() const;
};

// Bytes that a token of a strip takes at most.
inline constexpr size_t kMostTokenBytes = 6 * kStripChannels;
constexpr size_t MaxTokenBytes(const StripTables& tables) {
  return tables.has_low_bits ? kMostTokenBytes : 2 * kStripChannels;
}

// Encodes the tokens of a strip of `channels` channels, from the last to the first; those before them follow. Symbols
// are kStripChannels bytes a token, values k as many numbers, of which only low bits are read, and nothing where there
// are none. False when there is no room.
[[nodiscard]] bool EncodeStrip(const StripTables& tables, const uint8_t* symbols, const int32_t* k, size_t tokens,
                               size_t channels, ChannelRansEncoder& encoder);

// Tells the upper parts of the values that are escapes, one after the other: by how much h is beyond the reach of its
// table, at least 1, with the sign of h.
class EscapeReader {
 public:
  virtual int32_t Next() = 0;

 protected:
  ~EscapeReader() = default;
};

// Where values of `dtype`, which has a kernel, are placed, those of a token `stride` after those of the token before.
struct PlacedValues {
  DType dtype;
  void* first;
  size_t stride;

  PlacedValues After(size_t tokens) const {
    return {dtype, static_cast<std::byte*>(first) + tokens * stride * DTypeSize(dtype), stride};
  }
};
// What points become: point unit + mean of their channel, limited to the finite range of the dtype and rounded.
struct Placing {
  PlacedValues values;
  float unit;
  const float* means;
};

// Decodes the tokens of a strip, places what their points become, and passes the states on. Without `states`, all is of
// the first quantizer. False when the words are used up, or an escape is none that an encoder has.
[[nodiscard]] bool DecodeStrip(const StripTables& tables, size_t tokens, size_t channels, StripStates* states,
                               ChannelRansDecoder& decoder, EscapeReader& escapes, const Placing& placing);

namespace scalar {
[[nodiscard]] bool EncodeStrip(const StripTables& tables, const uint8_t* symbols, const int32_t* k, size_t tokens,
                               size_t channels, ChannelRansEncoder& encoder);
// Makes kStripChannels points of each token.
[[nodiscard]] bool DecodeStrip(const StripTables& tables, size_t tokens, size_t channels, StripStates* states,
                               ChannelRansDecoder& decoder, EscapeReader& escapes, int32_t* points);
// The value of a channel that is an escape, from its low bits. False where it is none that an encoder has.
[[nodiscard]] bool DecodeEscape(const StripTables& tables, size_t channel, size_t quantizer, EscapeReader& escapes,
                                int32_t& k);
// Makes points of a token's symbols and low bits, which `row` has, and passes the states on.
[[nodiscard]] bool PassToken(const StripTables& tables, const uint8_t* symbols, size_t channels, StripStates* states,
                             EscapeReader& escapes, int32_t* row);
}  // namespace scalar

}  // namespace kvcompress::simd
