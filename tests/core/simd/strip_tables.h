#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "core/simd/channel_rans.h"

// Tables for tests of strips.
namespace kvcompress::testing {

// A table of these frequencies of k = 0, 1, -1, ..., for either quantizer, of 4095 slots.
inline simd::ChannelTable TableOf(const std::vector<uint32_t>& first, const std::vector<uint32_t>& second) {
  simd::ChannelTable table = {};
  for (const size_t quantizer : {0, 1}) {
    std::vector<uint32_t> frequencies = quantizer == 0 ? first : second;
    table.reach[quantizer] = static_cast<uint8_t>(frequencies.size() / 2);
    uint32_t slot = 0;
    const auto add = [&](uint8_t symbol, uint32_t frequency) {
      table.symbols[symbol | (quantizer == 1 ? simd::kOddQuantizer : 0)] = frequency | slot << 16;
      for (uint32_t i = 0; i < frequency; ++i) {
        const uint32_t byte = quantizer == 0 ? symbol : (uint32_t{symbol} | simd::kOddQuantizer) << 8;
        table.symbols_at[slot] = static_cast<uint16_t>(table.symbols_at[slot] | byte);
        table.slots[slot++][quantizer] = uint32_t{symbol} << 24 | (frequency - 1) << 12 | i;
      }
    };
    for (size_t i = 0; i < frequencies.size(); ++i) add(static_cast<uint8_t>(i), frequencies[i]);
    add(simd::kEscape, 1);
    if (slot != simd::kRansSlots) std::abort();
  }
  return table;
}

inline std::vector<simd::ChannelTable> SomeTables() {
  std::vector<uint32_t> wide(63, 40);
  wide[0] = 4095 - 62 * 40;
  return {TableOf({4095}, {4093, 1, 1}), TableOf({1095, 1000, 1000, 500, 500}, {2095, 1000, 1000}),
          TableOf(wide, wide)};
}

// Each of them in turn, some channels with as many low bits as there may be.
inline simd::StripTables StripOf(const std::vector<simd::ChannelTable>& tables, bool has_low_bits) {
  simd::StripTables strip{.all = tables.data(), .has_low_bits = has_low_bits};
  for (size_t c = 0; c < simd::kStripChannels; ++c) {
    strip.index[c] = static_cast<int32_t>(c % tables.size());
    if (has_low_bits && c % 5 < 3) strip.low_bits[c] = static_cast<int32_t>(c * 7 % 18);
  }
  return strip;
}

// The symbols of values, of the quantizers that the trellis's states say, or of the first; escapes[t] says which
// channels of token t have one.
inline void MakeSymbols(const simd::StripTables& tables, const std::vector<int32_t>& k, size_t channels, bool trellis,
                        std::vector<uint8_t>& symbols, std::vector<uint32_t>& escapes) {
  simd::StripStates states = {};
  for (size_t t = 0; t < escapes.size(); ++t) {
    escapes[t] = 0;
    for (size_t c = 0; c < channels; ++c) {
      const size_t at = t * simd::kStripChannels + c;
      const size_t quantizer = simd::QuantizerOf(states[c]);
      const int32_t high = k[at] >> tables.low_bits[c];
      const bool escape = std::abs(high) > tables[c].reach[quantizer];
      escapes[t] |= uint32_t{escape} << c;
      const uint8_t symbol = escape ? simd::kEscape : simd::SymbolOf(high);
      symbols[at] = static_cast<uint8_t>(symbol | (quantizer != 0 ? simd::kOddQuantizer : 0));
      if (trellis) states[c] = simd::NextState(states[c], k[at] % 2 != 0);
    }
  }
}

}  // namespace kvcompress::testing
