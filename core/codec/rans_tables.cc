#include "core/codec/rans_tables.h"

#include <algorithm>
#include <array>
#include <numeric>

namespace kvcompress {
namespace {

// Below this many bytes the states of the wide lanes cost more than their speed is worth.
constexpr size_t kWideBytes = size_t{1} << 15;

simd::RansSymbolTable MakeSymbolTable(const Histogram& frequencies) {
  simd::RansSymbolTable table;
  uint32_t start = 0;
  for (size_t s = 0; s < 256; ++s) {
    table[s] = frequencies[s] | start << 16;
    start += frequencies[s];
  }
  return table;
}

void MakeSlotTable(const Histogram& frequencies, simd::RansSlotTable& table) {
  uint32_t* slot = table.data();
  for (uint32_t s = 0; s < 256; ++s) {
    const uint32_t entry = s << 24 | (frequencies[s] - 1) << 12;  // not used when the frequency is 0
    for (uint32_t i = 0; i < frequencies[s]; ++i) *slot++ = entry + i;
  }
}

}  // namespace

std::optional<std::byte> OnlySymbol(const Histogram& frequencies) {
  const auto found = std::ranges::find(frequencies, simd::kRansSlots);
  if (found == frequencies.end()) return std::nullopt;
  return static_cast<std::byte>(found - frequencies.begin());
}

size_t RansLanes(size_t count) { return count < kWideBytes ? simd::kRansNarrowLanes : simd::kRansWideLanes; }
bool IsRansLanes(size_t lanes) { return lanes == simd::kRansNarrowLanes || lanes == simd::kRansWideLanes; }

Histogram NormalizeToSlots(const std::array<uint64_t, 256>& weights) {
  const uint64_t total = std::accumulate(weights.begin(), weights.end(), uint64_t{0});
  std::array<uint64_t, 256> excess;
  uint64_t present = 0;
  uint64_t sum = 0;
  for (size_t s = 0; s < 256; ++s) {
    const uint64_t scaled = weights[s] * simd::kRansSlots;
    excess[s] = scaled > total ? scaled - total : 0;
    present += weights[s] > 0;
    sum += excess[s];
  }
  const uint64_t free_slots = simd::kRansSlots - present;
  Histogram frequencies = {};
  uint64_t below = 0;
  uint64_t given = 0;
  for (size_t s = 0; s < 256; ++s) {
    if (weights[s] == 0) continue;
    below += excess[s];
    const uint64_t until = below * free_slots / sum;
    frequencies[s] = static_cast<uint32_t>(1 + until - given);
    given = until;
  }
  return frequencies;
}

Histogram NormalizeToSlots(const Histogram& counts) {
  std::array<uint64_t, 256> weights;
  std::ranges::copy(counts, weights.begin());
  return NormalizeToSlots(weights);
}

uint64_t RansBytes(const Histogram& counts, const Histogram& frequencies) {
  uint64_t bits = 0;  // in units of 1/4096
  for (size_t s = 0; s < 256; ++s) {
    if (counts[s] > 0) bits += uint64_t{counts[s]} * (QuickLog2(simd::kRansSlots) - QuickLog2(frequencies[s]));
  }
  return bits / (uint64_t{8} * 4096);
}

size_t EncodeRans(const Histogram& frequencies, size_t lanes, ByteSpan raw, MutableByteSpan coded) {
  if (OnlySymbol(frequencies)) {
    if (coded.size() < 6 * lanes) return 0;  // the room that RansEncode asks for
    for (size_t i = 0; i < lanes; ++i) StoreLE(simd::kRansLow, coded.data() + 4 * i);
    return 4 * lanes;
  }
  return simd::RansEncode(MakeSymbolTable(frequencies), reinterpret_cast<const uint8_t*>(raw.data()), raw.size(), lanes,
                          reinterpret_cast<uint8_t*>(coded.data()), coded.size());
}

bool DecodeRans(const Histogram& frequencies, size_t lanes, ByteSpan coded, MutableByteSpan raw) {
  if (const std::optional<std::byte> symbol = OnlySymbol(frequencies)) {
    if (coded.size() != 4 * lanes) return false;
    for (size_t i = 0; i < coded.size(); i += 4) {
      if (LoadLE<uint32_t>(coded.data() + i) != simd::kRansLow) return false;
    }
    std::ranges::fill(raw, *symbol);
    return true;
  }
  thread_local simd::RansSlotTable slots;
  MakeSlotTable(frequencies, slots);
  return simd::RansDecode(slots, reinterpret_cast<const uint8_t*>(coded.data()), coded.size(), lanes,
                          reinterpret_cast<uint8_t*>(raw.data()), raw.size());
}

}  // namespace kvcompress
