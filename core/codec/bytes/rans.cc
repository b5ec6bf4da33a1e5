#include "core/simd/rans.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <optional>

#include "core/codec/bytes/bits.h"
#include "core/codec/histogram.h"
#include "core/codec/registry.h"

namespace kvcompress {
namespace {

constexpr size_t kNarrowLanes = 4;
// Below this many bytes the states of the wide lanes cost more than their speed is worth.
constexpr size_t kWideBytes = size_t{1} << 15;

// The number of lanes, then at most 4 + 12 bits for each symbol; a run of absent ones takes 12.
constexpr size_t kMaxHeadBytes = 1 + 256 * 2;

// Frequencies that sum to kRansSlots: one slot for each symbol present, and the others in proportion to what a symbol
// has above one slot's worth, rounded so that the sums over the symbols so far are right.
Histogram Normalize(const Histogram& counts, uint64_t total) {
  std::array<uint64_t, 256> excess;
  uint64_t present = 0;
  uint64_t sum = 0;
  for (size_t s = 0; s < 256; ++s) {
    const uint64_t scaled = uint64_t{counts[s]} * simd::kRansSlots;
    excess[s] = scaled > total ? scaled - total : 0;
    present += counts[s] > 0;
    sum += excess[s];
  }
  const uint64_t free_slots = simd::kRansSlots - present;
  Histogram frequencies = {};
  uint64_t below = 0;
  uint64_t given = 0;
  for (size_t s = 0; s < 256; ++s) {
    if (counts[s] == 0) continue;
    below += excess[s];
    const uint64_t until = below * free_slots / sum;
    frequencies[s] = static_cast<uint32_t>(1 + until - given);
    given = until;
  }
  return frequencies;
}

// The bytes that `counts` symbols take, about.
uint64_t EstimateBytes(const Histogram& counts, const Histogram& frequencies) {
  uint64_t bits = 0;  // in units of 1/4096
  for (size_t s = 0; s < 256; ++s) {
    if (counts[s] > 0) bits += uint64_t{counts[s]} * (FixedLog2(simd::kRansSlots) - FixedLog2(frequencies[s]));
  }
  return bits / (uint64_t{8} * 4096);
}

// Writes the frequencies, and returns the end of what it wrote.
uint8_t* WriteTable(const Histogram& frequencies, uint8_t* out) {
  BitWriter writer(out);
  uint32_t sum = 0;
  for (size_t s = 0; sum < simd::kRansSlots;) {
    if (frequencies[s] == 0) {
      const size_t begin = s;
      while (frequencies[s] == 0) ++s;
      writer.Write(0, 4);
      writer.Write(static_cast<uint32_t>(s - begin - 1), 8);
      continue;
    }
    const uint32_t highest_bit = std::bit_floor(frequencies[s]);
    const int bits = std::bit_width(frequencies[s]);
    writer.Write(static_cast<uint32_t>(bits), 4);
    writer.Write(frequencies[s] - highest_bit, bits - 1);
    sum += frequencies[s++];
  }
  return writer.Finish();
}

// Reads frequencies that sum to kRansSlots; returns the size of their text, or 0 for what is none.
size_t ReadTable(ByteSpan in, Histogram& frequencies) {
  BitReader reader(in);
  frequencies = {};
  uint32_t sum = 0;
  for (size_t s = 0; sum < simd::kRansSlots;) {
    uint32_t bits, value;
    if (s >= 256 || !reader.Read(4, bits)) return 0;
    if (bits == 0) {
      if (!reader.Read(8, value)) return 0;
      s += value + 1;
      continue;
    }
    if (bits > simd::kRansBits + 1 || !reader.Read(static_cast<int>(bits) - 1, value)) return 0;
    frequencies[s] = (1u << (bits - 1)) + value;
    sum += frequencies[s++];
  }
  return sum == simd::kRansSlots ? reader.Finish() : 0;
}

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

// docs/format.md, "rans": the number of lanes, the frequencies, the words, the states.
class Rans final : public ByteCodec {
 public:
  absl::StatusOr<size_t> Encode(ByteSpan raw, MutableByteSpan encoded) const override {
    if (raw.empty()) return size_t{0};
    const std::optional<Histogram> counts = CountIfItShrinks(raw);
    if (!counts) return size_t{0};
    const Histogram frequencies = Normalize(*counts, raw.size());
    const size_t lanes = raw.size() < kWideBytes ? kNarrowLanes : simd::kRansWideLanes;
    std::array<uint8_t, kMaxHeadBytes> head;
    head[0] = static_cast<uint8_t>(lanes);
    const auto head_size = static_cast<size_t>(WriteTable(frequencies, head.data() + 1) - head.data());
    const size_t limit = std::min(encoded.size(), raw.size() - raw.size() / 128);
    if (head_size + EstimateBytes(*counts, frequencies) + 4 * lanes > limit) return size_t{0};
    std::memcpy(encoded.data(), head.data(), head_size);
    const size_t coded =
        simd::RansEncode(MakeSymbolTable(frequencies), reinterpret_cast<const uint8_t*>(raw.data()), raw.size(), lanes,
                         reinterpret_cast<uint8_t*>(encoded.data()) + head_size, limit - head_size);
    return coded == 0 ? 0 : head_size + coded;
  }

  absl::Status Decode(ByteSpan encoded, MutableByteSpan raw) const override {
    if (encoded.empty()) return absl::DataLossError("rans: stream is empty");
    const auto lanes = std::to_integer<size_t>(encoded[0]);
    if (lanes != kNarrowLanes && lanes != simd::kRansWideLanes) {
      return absl::DataLossError("rans: no such number of lanes");
    }
    Histogram frequencies;
    const size_t table_size = ReadTable(encoded.subspan(1), frequencies);
    if (table_size == 0) return absl::DataLossError("rans: frequencies are damaged");
    thread_local simd::RansSlotTable slots;
    MakeSlotTable(frequencies, slots);
    const ByteSpan coded = encoded.subspan(1 + table_size);
    if (!simd::RansDecode(slots, reinterpret_cast<const uint8_t*>(coded.data()), coded.size(), lanes,
                          reinterpret_cast<uint8_t*>(raw.data()), raw.size())) {
      return absl::DataLossError("rans: stream does not decode to its size");
    }
    return absl::OkStatus();
  }
};

constexpr std::string_view kExamples[] = {"raw|rans", "int4(group=64)|rans"};

}  // namespace

extern constinit const CodecRow kRans =
    RowOf<Rans>("rans", "entropy coding of each stream by the frequencies of its bytes, at GB/s", kExamples);

}  // namespace kvcompress
