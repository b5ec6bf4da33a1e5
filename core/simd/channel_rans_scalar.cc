#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>

#include "core/simd/channel_rans.h"
#include "core/simd/trellis.h"

namespace kvcompress::simd {

static_assert(std::endian::native == std::endian::little);

ChannelRansEncoder::ChannelRansEncoder(size_t lane_count, uint8_t* to, size_t room)
    : lanes(lane_count), out(to), capacity(room) {
  states.fill(kRansLow);
}

size_t ChannelRansEncoder::Finish() {
  if (capacity - size < 4 * lanes) return 0;
  std::memcpy(out + size, states.data(), 4 * lanes);
  return size + 4 * lanes;
}

bool ChannelRansDecoder::Begin(size_t lane_count, const uint8_t* in, size_t in_size) {
  lanes = lane_count;
  if (in_size < 4 * lanes || (in_size - 4 * lanes) % 2 != 0) return false;
  words = in;
  size = in_size - 4 * lanes;
  std::memcpy(states.data(), in + size, 4 * lanes);
  return std::all_of(states.begin(), states.begin() + static_cast<ptrdiff_t>(lanes),
                     [](uint32_t x) { return x >= kRansLow && x < kRansLow << 16; });
}

bool ChannelRansDecoder::Finish() const {
  return size == 0 && std::all_of(states.begin(), states.begin() + static_cast<ptrdiff_t>(lanes),
                                  [](uint32_t x) { return x == kRansLow; });
}

namespace scalar {
namespace {

void PushWord(ChannelRansEncoder& encoder, uint32_t& x) {
  const auto word = static_cast<uint16_t>(x);
  std::memcpy(encoder.out + encoder.size, &word, 2);
  encoder.size += 2;
  x >>= 16;
}

void EncodeBits(int32_t value, int32_t bits, uint32_t& x, ChannelRansEncoder& encoder) {
  if (x >> (31 - bits) != 0) PushWord(encoder, x);
  x = x << bits | (static_cast<uint32_t>(value) & ((1u << bits) - 1));
}

void EncodeSymbol(uint32_t entry, uint32_t& x, ChannelRansEncoder& encoder) {
  const uint32_t frequency = entry & 0xffff;
  if (x >> 19 >= frequency) PushWord(encoder, x);
  x = (x / frequency << kRansBits) + x % frequency + (entry >> 16);
}

// False where the words are used up.
bool Refill(uint32_t& x, ChannelRansDecoder& decoder) {
  if (x >= kRansLow) return true;
  if (decoder.size == 0) return false;
  decoder.size -= 2;
  uint16_t word;
  std::memcpy(&word, decoder.words + decoder.size, 2);
  x = x << 16 | word;
  return true;
}

bool DecodeBits(int32_t bits, uint32_t& x, ChannelRansDecoder& decoder, int32_t& value) {
  value = static_cast<int32_t>((static_cast<uint32_t>(value) << bits) | (x & ((1u << bits) - 1)));
  x >>= bits;
  return Refill(x, decoder);
}

// Lets the states of the other token of two be the first ones.
void PassTurn(size_t lanes, std::array<uint32_t, kMaxChannelLanes>& states) {
  if (lanes > kStripChannels) std::rotate(states.begin(), states.begin() + kStripChannels, states.end());
}

// Symbols and low bits of the channels from `begin` to `end`, of a lane each. False where the words are used up.
bool DecodeGroup(const StripTables& tables, size_t begin, size_t end, const StripStates* states,
                 ChannelRansDecoder& decoder, uint8_t* symbols, int32_t* low) {
  // As the encoder undone: the words are popped by the highest lane first.
  for (size_t c = end; c-- > begin;) {
    const size_t quantizer = states != nullptr ? QuantizerOf((*states)[c]) : 0;
    uint32_t& x = decoder.states[c - begin];
    const uint32_t entry = tables[c].slots[x % kRansSlots][quantizer];
    symbols[c] = static_cast<uint8_t>(entry >> 24);
    low[c] = 0;
    x = ((entry >> 12 & 0xfff) + 1) * (x >> kRansBits) + (entry & 0xfff);
    if (!Refill(x, decoder)) return false;
  }
  if (!tables.has_low_bits) return true;
  for (const auto bits_of : {&StripTables::UpperBits, &StripTables::LowerBits}) {
    for (size_t c = end; c-- > begin;) {
      if (!DecodeBits((tables.*bits_of)(c), decoder.states[c - begin], decoder, low[c])) return false;
    }
  }
  return true;
}

}  // namespace

bool EncodeStrip(const StripTables& tables, const uint8_t* symbols, const int32_t* k, size_t tokens, size_t channels,
                 ChannelRansEncoder& encoder) {
  for (size_t t = tokens; t-- > 0;) {
    if (encoder.capacity - encoder.size < MaxTokenBytes(tables)) return false;
    PassTurn(encoder.lanes, encoder.states);
    // Groups of a channel a lane, from the last to the first, within a group from lane 0 up.
    for (size_t group = (channels + encoder.lanes - 1) / encoder.lanes; group-- > 0;) {
      const size_t begin = group * encoder.lanes;
      const size_t end = std::min(channels, begin + encoder.lanes);
      if (tables.has_low_bits) {
        const int32_t* const row = k + t * kStripChannels;
        for (size_t c = begin; c < end; ++c) {
          EncodeBits(row[c], tables.LowerBits(c), encoder.states[c - begin], encoder);
        }
        for (size_t c = begin; c < end; ++c) {
          EncodeBits(row[c] >> kLowBitsAtOnce, tables.UpperBits(c), encoder.states[c - begin], encoder);
        }
      }
      for (size_t c = begin; c < end; ++c) {
        EncodeSymbol(tables[c].symbols[symbols[t * kStripChannels + c]], encoder.states[c - begin], encoder);
      }
    }
  }
  return true;
}

bool DecodeEscape(const StripTables& tables, size_t channel, size_t quantizer, EscapeReader& escapes, int32_t& k) {
  const int64_t beyond = escapes.Next();
  const int64_t reach = tables[channel].reach[quantizer];
  const int64_t value = (beyond < 0 ? beyond - reach : beyond + reach) * (1 << tables.low_bits[channel]) + k;
  k = static_cast<int32_t>(value);
  return std::abs(value) <= kMaxPoint / 2;
}

bool PassToken(const StripTables& tables, const uint8_t* symbols, size_t channels, StripStates* states,
               EscapeReader& escapes, int32_t* row) {
  for (size_t c = 0; c < channels; ++c) {
    const size_t quantizer = states != nullptr ? QuantizerOf((*states)[c]) : 0;
    int32_t k = row[c];
    if (symbols[c] != kEscape) {
      k += ValueOf(symbols[c]) * (1 << tables.low_bits[c]);
    } else if (!DecodeEscape(tables, c, quantizer, escapes, k)) {
      return false;
    }
    row[c] = PointOf(k, quantizer);
    if (states != nullptr) (*states)[c] = NextState((*states)[c], k % 2 != 0);
  }
  return true;
}

bool DecodeStrip(const StripTables& tables, size_t tokens, size_t channels, StripStates* states,
                 ChannelRansDecoder& decoder, EscapeReader& escapes, int32_t* points) {
  for (size_t t = 0; t < tokens; ++t) {
    int32_t* const row = points + t * kStripChannels;
    uint8_t symbols[kStripChannels];
    for (size_t begin = 0; begin < channels; begin += decoder.lanes) {
      const size_t end = std::min(channels, begin + decoder.lanes);
      if (!DecodeGroup(tables, begin, end, states, decoder, symbols, row)) return false;
    }
    PassTurn(decoder.lanes, decoder.states);
    if (!PassToken(tables, symbols, channels, states, escapes, row)) return false;
  }
  return true;
}

}  // namespace scalar
}  // namespace kvcompress::simd
