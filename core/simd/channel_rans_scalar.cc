#include <algorithm>
#include <bit>
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

bool EncodeStrip(const StripTables& tables, const uint8_t* symbols, size_t tokens, size_t channels,
                 ChannelRansEncoder& encoder) {
  for (size_t t = tokens; t-- > 0;) {
    if (encoder.capacity - encoder.size < 2 * kStripChannels) return false;
    // Groups of a channel a lane, from the last to the first, within a group from lane 0 up.
    for (size_t group = (channels + encoder.lanes - 1) / encoder.lanes; group-- > 0;) {
      for (size_t c = group * encoder.lanes; c < std::min(channels, (group + 1) * encoder.lanes); ++c) {
        const uint32_t entry = tables[c].symbols[symbols[t * kStripChannels + c]];
        const uint32_t frequency = entry & 0xffff;
        uint32_t x = encoder.states[c - group * encoder.lanes];
        if (x >> 19 >= frequency) {
          const auto word = static_cast<uint16_t>(x);
          std::memcpy(encoder.out + encoder.size, &word, 2);
          encoder.size += 2;
          x >>= 16;
        }
        encoder.states[c - group * encoder.lanes] = (x / frequency << kRansBits) + x % frequency + (entry >> 16);
      }
    }
  }
  return true;
}

size_t DecodeStrip(const StripTables& tables, size_t tokens, size_t channels, uint32_t held, StripStates* states,
                   ChannelRansDecoder& decoder, int32_t* points, uint32_t* stopped, bool* ok) {
  for (size_t t = 0; t < tokens; ++t) {
    int32_t* const row = points + t * kStripChannels;
    uint32_t stops = held;
    // As the encoder undone: within a group the words are popped by the highest lane first.
    for (size_t begin = 0; begin < channels; begin += decoder.lanes) {
      for (size_t c = std::min(channels, begin + decoder.lanes); c-- > begin;) {
        const size_t quantizer = states != nullptr ? QuantizerOf((*states)[c]) : 0;
        uint32_t x = decoder.states[c - begin];
        const uint32_t entry = tables[c].slots[quantizer][x % kRansSlots];
        row[c] = static_cast<int32_t>(entry >> 24);
        stops |= uint32_t{entry >> 24 == kEscape} << c;
        x = ((entry >> 12 & 0xfff) + 1) * (x >> kRansBits) + (entry & 0xfff);
        if (x < kRansLow) {
          if (decoder.size == 0) {
            *ok = false;
            return 0;
          }
          decoder.size -= 2;
          uint16_t word;
          std::memcpy(&word, decoder.words + decoder.size, 2);
          x = x << 16 | word;
        }
        decoder.states[c - begin] = x;
      }
    }
    for (size_t c = 0; c < channels; ++c) {
      if ((stops >> c & 1) != 0) continue;
      const int32_t k = ValueOf(static_cast<uint8_t>(row[c]));
      row[c] = PointOf(k, states != nullptr ? QuantizerOf((*states)[c]) : 0);
      if (states != nullptr) (*states)[c] = NextState((*states)[c], k % 2 != 0);
    }
    if (stops != 0) {
      *stopped = stops;
      return t;
    }
  }
  return tokens;
}

}  // namespace scalar
}  // namespace kvcompress::simd
