#include <algorithm>
#include <bit>
#include <cstring>

#include "core/simd/channel_rans.h"
#include "core/simd/trellis.h"

namespace kvcompress::simd {

static_assert(std::endian::native == std::endian::little);

ChannelRansEncoder::ChannelRansEncoder(size_t lanes, uint8_t* out, size_t capacity)
    : lanes_(lanes), out_(out), capacity_(capacity) {
  states_.fill(kRansLow);
}

bool ChannelRansEncoder::Encode(const StripTables& tables, const uint8_t* symbols, size_t tokens, size_t channels) {
  for (size_t t = tokens; t-- > 0;) {
    if (capacity_ - size_ < 2 * kStripChannels) return false;
    // Groups of a channel a lane, from the last to the first, within a group from lane 0 up.
    for (size_t group = (channels + lanes_ - 1) / lanes_; group-- > 0;) {
      for (size_t c = group * lanes_; c < std::min(channels, (group + 1) * lanes_); ++c) {
        const uint32_t entry = tables[c]->symbols[symbols[t * kStripChannels + c]];
        const uint32_t frequency = entry & 0xffff;
        uint32_t x = states_[c - group * lanes_];
        if (x >> 19 >= frequency) {
          const auto word = static_cast<uint16_t>(x);
          std::memcpy(out_ + size_, &word, 2);
          size_ += 2;
          x >>= 16;
        }
        states_[c - group * lanes_] = (x / frequency << kRansBits) + x % frequency + (entry >> 16);
      }
    }
  }
  return true;
}

size_t ChannelRansEncoder::Finish() {
  if (capacity_ - size_ < 4 * lanes_) return 0;
  std::memcpy(out_ + size_, states_.data(), 4 * lanes_);
  return size_ + 4 * lanes_;
}

bool ChannelRansDecoder::Begin(size_t lanes, const uint8_t* in, size_t size) {
  if (size < 4 * lanes || (size - 4 * lanes) % 2 != 0) return false;
  lanes_ = lanes;
  words_ = in;
  size_ = size - 4 * lanes;
  std::memcpy(states_.data(), in + size_, 4 * lanes);
  return std::all_of(states_.begin(), states_.begin() + static_cast<ptrdiff_t>(lanes),
                     [](uint32_t x) { return x >= kRansLow && x < kRansLow << 16; });
}

size_t ChannelRansDecoder::Decode(const StripTables& tables, size_t tokens, size_t channels, StripStates* states,
                                  uint32_t held, int32_t* points, uint32_t* stopped, bool* ok) {
  for (size_t t = 0; t < tokens; ++t) {
    int32_t* const row = points + t * kStripChannels;
    uint32_t stops = held;
    // As the encoder undone: within a group the words are popped by the highest lane first.
    for (size_t begin = 0; begin < channels; begin += lanes_) {
      for (size_t c = std::min(channels, begin + lanes_); c-- > begin;) {
        const size_t quantizer = states != nullptr ? QuantizerOf((*states)[c]) : 0;
        uint32_t x = states_[c - begin];
        const uint32_t entry = tables[c]->slots[quantizer][x % kRansSlots];
        row[c] = static_cast<int32_t>(entry >> 24);
        stops |= uint32_t{entry >> 24 == kEscape} << c;
        x = ((entry >> 12 & 0xfff) + 1) * (x >> kRansBits) + (entry & 0xfff);
        if (x < kRansLow) {
          if (size_ == 0) return *ok = false;
          size_ -= 2;
          uint16_t word;
          std::memcpy(&word, words_ + size_, 2);
          x = x << 16 | word;
        }
        states_[c - begin] = x;
      }
    }
    if (stops != 0) {
      *stopped = stops;
      return t;
    }
    for (size_t c = 0; c < channels; ++c) {
      const int32_t k = ValueOf(static_cast<uint8_t>(row[c]));
      row[c] = PointOf(k, states != nullptr ? QuantizerOf((*states)[c]) : 0);
      if (states != nullptr) (*states)[c] = NextState((*states)[c], k % 2 != 0);
    }
  }
  return tokens;
}

bool ChannelRansDecoder::Finish() const {
  return size_ == 0 && std::all_of(states_.begin(), states_.begin() + static_cast<ptrdiff_t>(lanes_),
                                   [](uint32_t x) { return x == kRansLow; });
}

}  // namespace kvcompress::simd
