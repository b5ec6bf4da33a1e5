#pragma once

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/simd/rans.h"
#include "core/simd/rans_words.h"

// Groups of symbols of `rans`, at most one a lane, and what goes around the loop over them.
namespace kvcompress::simd::internal {

static_assert(std::endian::native == std::endian::little);

// The room that a group must find: its own words, and the states after all.
constexpr size_t RansRoom(size_t lanes) { return 6 * lanes; }

struct RansEncoder {
  const RansSymbolTable& symbols;
  size_t lanes;
  uint8_t* out;
  size_t capacity;
  size_t size = 0;  // of what is written
  std::array<uint32_t, kRansWideLanes> states = {};

  RansEncoder(const RansSymbolTable& table, size_t lane_count, uint8_t* to, size_t room)
      : symbols(table), lanes(lane_count), out(to), capacity(room) {
    states.fill(kRansLow);
  }

  // False when there is no room.
  [[nodiscard]] bool EncodeGroup(const uint8_t* raw, size_t count) {
    if (capacity - size < RansRoom(lanes)) return false;
    for (size_t lane = 0; lane < count; ++lane) {
      const uint32_t entry = symbols[raw[lane]];
      const uint32_t frequency = entry & 0xffff;
      uint32_t x = states[lane];
      if (x >> 19 >= frequency) {
        const auto word = static_cast<uint16_t>(x);
        std::memcpy(out + size, &word, 2);
        size += 2;
        x >>= 16;
      }
      states[lane] = (x / frequency << kRansBits) + x % frequency + (entry >> 16);
    }
    return true;
  }

  // Encodes whole groups, from the last to the first.
  [[nodiscard]] bool EncodeGroups(const uint8_t* raw, size_t groups) {
    while (groups-- > 0) {
      if (!EncodeGroup(raw + groups * lanes, lanes)) return false;
    }
    return true;
  }

  // The same, sooner; for so many lanes.
  template <size_t kLanes>
  [[nodiscard]] bool EncodeSideBySide(const uint8_t* raw, size_t groups) {
    std::array<uint32_t, kLanes> x;
    std::copy_n(states.begin(), kLanes, x.begin());
    WordWriter writer{out + size};
    while (groups-- > 0) {
      if (static_cast<size_t>(out + capacity - writer.end) < RansRoom(kLanes)) return false;
      const uint8_t* const group = raw + groups * kLanes;
      ForLanesUp<kLanes>([&](size_t lane) { writer.EncodeSymbol(symbols[group[lane]], x[lane]); });
    }
    std::ranges::copy(x, states.begin());
    size = static_cast<size_t>(writer.end - out);
    return true;
  }

  size_t Finish() {
    std::memcpy(out + size, states.data(), 4 * lanes);
    return size + 4 * lanes;
  }
};

struct RansDecoder {
  const RansSlotTable& slots;
  size_t lanes;
  const uint8_t* words;
  size_t size = 0;  // of the words that are left
  std::array<uint32_t, kRansWideLanes> states = {};

  RansDecoder(const RansSlotTable& table, size_t lane_count, const uint8_t* in)
      : slots(table), lanes(lane_count), words(in) {}

  [[nodiscard]] bool Begin(size_t in_size) {
    if (in_size < 4 * lanes || (in_size - 4 * lanes) % 2 != 0) return false;
    size = in_size - 4 * lanes;
    std::memcpy(states.data(), words + size, 4 * lanes);
    return std::all_of(states.begin(), states.begin() + static_cast<ptrdiff_t>(lanes),
                       [](uint32_t x) { return x >= kRansLow && x < kRansLow << 16; });
  }

  // False when the words are used up.
  [[nodiscard]] bool DecodeGroup(uint8_t* raw, size_t count) {
    for (size_t lane = count; lane-- > 0;) {
      uint32_t x = states[lane];
      const uint32_t entry = slots[x % kRansSlots];
      raw[lane] = static_cast<uint8_t>(entry >> 24);
      x = ((entry >> 12 & 0xfff) + 1) * (x >> kRansBits) + (entry & 0xfff);
      if (x < kRansLow) {
        if (size == 0) return false;
        size -= 2;
        uint16_t word;
        std::memcpy(&word, words + size, 2);
        x = x << 16 | word;
      }
      states[lane] = x;
    }
    return true;
  }

  // Decodes whole groups of so many lanes, and returns their number: it stops in front of a group that the words that
  // are left might not suffice for.
  template <size_t kLanes>
  size_t DecodeSideBySide(uint8_t* raw, size_t groups) {
    std::array<uint32_t, kLanes> x;
    std::copy_n(states.begin(), kLanes, x.begin());
    WordReader reader{words + size};
    size_t group = 0;
    for (; group < groups && reader.end - words >= static_cast<ptrdiff_t>(2 * kLanes); ++group, raw += kLanes) {
      ForLanesDown<kLanes>([&](size_t lane) { raw[lane] = reader.DecodeSymbol(slots, x[lane]); });
    }
    std::ranges::copy(x, states.begin());
    size = static_cast<size_t>(reader.end - words);
    return group;
  }

  // Whether decoding has ended where encoding began.
  [[nodiscard]] bool Finish() const {
    return size == 0 && std::all_of(states.begin(), states.begin() + static_cast<ptrdiff_t>(lanes),
                                    [](uint32_t x) { return x == kRansLow; });
  }
};

}  // namespace kvcompress::simd::internal
