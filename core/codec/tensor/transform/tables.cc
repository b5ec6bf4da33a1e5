#include "core/codec/tensor/transform/tables.h"

#include <cmath>
#include <memory>
#include <vector>

#include "core/base/elementary.h"

namespace kvcompress {
namespace {

using simd::ChannelTable;
using simd::kEscape;
using simd::kRansSlots;

constexpr size_t kTables = kMaxTableClass - kMinClass + 1;
constexpr int kMaxMagnitude = (kEscape - 1) / 2;

// Where the values that become k end, on average, in units.
double UpperEnd(bool odd_quantizer, int k) {
  if (!odd_quantizer) return 2 * k + 1;
  return k == 0 ? 0.45 : 2 * k;
}

void FillTable(double deviation, size_t quantizer, ChannelTable& table) {
  uint32_t slot = 0;
  const auto add = [&](uint8_t symbol, uint32_t frequency) {
    table.symbols[symbol | (quantizer == 1 ? simd::kOddQuantizer : 0)] = frequency | slot << 16;
    for (uint32_t i = 0; i < frequency; ++i) {
      const uint32_t byte = quantizer == 0 ? symbol : (uint32_t{symbol} | simd::kOddQuantizer) << 8;
      table.symbols_at[slot] = static_cast<uint16_t>(table.symbols_at[slot] | byte);
      table.slots[slot++][quantizer] = uint32_t{symbol} << 24 | (frequency - 1) << 12 | i;
    }
  };
  uint32_t frequencies[kMaxMagnitude + 1] = {};
  int reach = 0;
  uint32_t left = kRansSlots - 1;  // without the escape's
  double below = HalfNormal(UpperEnd(quantizer == 1, 0) / deviation);
  for (int k = 1; k <= kMaxMagnitude; ++k) {
    const double up_to = HalfNormal(UpperEnd(quantizer == 1, k) / deviation);
    frequencies[k] = static_cast<uint32_t>(std::floor(kRansSlots * (up_to - below) + 0.5));
    below = up_to;
    if (frequencies[k] == 0) break;
    left -= 2 * frequencies[k];
    reach = k;
  }
  table.reach[quantizer] = static_cast<uint8_t>(reach);
  add(0, left);
  for (int k = 1; k <= reach; ++k) {
    add(simd::SymbolOf(k), frequencies[k]);
    add(simd::SymbolOf(-k), frequencies[k]);
  }
  add(kEscape, 1);
}

std::vector<ChannelTable> MakeTables(bool trellis) {
  std::vector<ChannelTable> tables(kTables);
  for (size_t i = 0; i < kTables; ++i) {
    const double deviation = Exp2((static_cast<int>(i) + kMinClass) * 0.25);
    FillTable(deviation, 0, tables[i]);
    if (trellis) FillTable(deviation, 1, tables[i]);
  }
  return tables;
}

}  // namespace

std::span<const ChannelTable> ChannelTables(bool trellis) {
  if (trellis) {
    static const std::vector<ChannelTable> tables = MakeTables(true);
    return tables;
  }
  static const std::vector<ChannelTable> tables = MakeTables(false);
  return tables;
}

}  // namespace kvcompress
