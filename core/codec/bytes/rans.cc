#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <optional>

#include "core/codec/bits.h"
#include "core/codec/histogram.h"
#include "core/codec/rans_tables.h"
#include "core/codec/registry.h"

namespace kvcompress {
namespace {

// The number of lanes, then at most 4 + 12 bits for each symbol; a run of absent ones takes 12.
constexpr size_t kMaxHeadBytes = 1 + 256 * 2;

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

// docs/format.md, "rans": the number of lanes, the frequencies, the words, the states.
class Rans final : public ByteCodec {
 public:
  absl::StatusOr<size_t> Encode(ByteSpan raw, MutableByteSpan encoded) const override {
    if (raw.empty()) return size_t{0};
    const std::optional<Histogram> counts = CountIfItShrinks(raw);
    if (!counts) return size_t{0};
    const Histogram frequencies = NormalizeToSlots(*counts);
    const size_t lanes = RansLanes(raw.size());
    std::array<uint8_t, kMaxHeadBytes> head;
    head[0] = static_cast<uint8_t>(lanes);
    const auto head_size = static_cast<size_t>(WriteTable(frequencies, head.data() + 1) - head.data());
    const size_t limit = std::min(encoded.size(), raw.size() - raw.size() / 128);
    if (head_size + RansBytes(*counts, frequencies) + 4 * lanes > limit) return size_t{0};
    std::memcpy(encoded.data(), head.data(), head_size);
    const size_t coded = EncodeRans(frequencies, lanes, raw, encoded.first(limit).subspan(head_size));
    return coded == 0 ? 0 : head_size + coded;
  }

  absl::Status Decode(ByteSpan encoded, MutableByteSpan raw) const override {
    if (encoded.empty()) return absl::DataLossError("rans: stream is empty");
    const auto lanes = std::to_integer<size_t>(encoded[0]);
    if (!IsRansLanes(lanes)) return absl::DataLossError("rans: no such number of lanes");
    Histogram frequencies;
    const size_t table_size = ReadTable(encoded.subspan(1), frequencies);
    if (table_size == 0) return absl::DataLossError("rans: frequencies are damaged");
    if (!DecodeRans(frequencies, lanes, encoded.subspan(1 + table_size), raw)) {
      return absl::DataLossError("rans: stream does not decode to its size");
    }
    return absl::OkStatus();
  }
};

constexpr std::string_view kExamples[] = {"raw|rans", "int4(group=64)|rans"};

}  // namespace

extern constinit const CodecRow kRans = RowOf<Rans>("rans",
                                                    "entropy coding of each stream by the frequencies of its bytes; "
                                                    "slow: it encodes at 1.5 to 3 GB/s and decodes at 2.5 "
                                                    "to 6, least over raw, where all bytes are coded",
                                                    kExamples);

}  // namespace kvcompress
