#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <optional>

#include "core/codec/bytes/huffman_code.h"
#include "core/codec/registry.h"
#include "core/simd/prefix_codes.h"

namespace kvcompress {
namespace {

constexpr size_t kParts = simd::kPrefixStreams;
constexpr size_t kSizesBytes = 4 * (kParts - 1);

// Part k of n bytes: ceil(n / kParts) of them, the later parts fewer where they run out.
size_t PartBegin(size_t n, size_t k) { return std::min(n, k * ((n + kParts - 1) / kParts)); }

// Decodes what is left of a part, code by code. False if its bits do not end where its bytes do.
bool DecodeRest(const simd::PrefixCodes& codes, const simd::PrefixRuns& runs, simd::PrefixStream part) {
  uint64_t pending = 0;
  uint32_t held = 0;
  const auto fill = [&] {
    for (; held <= 56 && part.in < part.in_end; held += 8) pending |= uint64_t{*part.in++} << held;
  };
  fill();
  if (held < part.bit) return false;
  pending >>= part.bit;
  held -= part.bit;
  while (part.out < part.out_end) {
    fill();
    const auto symbol = static_cast<uint8_t>(runs[pending % kCodeSlots] >> 16);
    const auto length = static_cast<uint32_t>(codes.lengths[symbol]);
    if (length > held) return false;
    *part.out++ = symbol;
    pending >>= length;
    held -= length;
  }
  return part.in == part.in_end && held < 8 && pending == 0;
}

// docs/format.md, "huffman": the lengths of the codes, the sizes of the parts, the parts.
class Huffman final : public ByteCodec {
 public:
  absl::StatusOr<size_t> Encode(ByteSpan raw, MutableByteSpan encoded) const override {
    if (raw.size() < 2 || encoded.empty()) return size_t{0};
    const std::optional<Histogram> counts = CountIfItShrinks(raw);
    if (!counts) return size_t{0};
    if ((*counts)[std::to_integer<size_t>(raw[0])] == raw.size()) {
      encoded[0] = raw[0];
      return size_t{1};
    }
    const CodeLengths lengths = OptimalLengths(*counts);
    std::array<uint8_t, kMaxLengthsBytes> text;
    const auto text_size = static_cast<size_t>(WriteLengths(lengths, text.data()) - text.data());
    uint64_t bits = 0;
    for (size_t s = 0; s < 256; ++s) bits += uint64_t{(*counts)[s]} * lengths[s];
    // Each part ends with a byte begun, and is written with up to 8 bytes after it, which the next part overwrites.
    if (text_size + kSizesBytes + bits / 8 + kParts + 8 > encoded.size()) return size_t{0};
    std::memcpy(encoded.data(), text.data(), text_size);
    std::byte* sizes = encoded.data() + text_size;
    std::byte* at = sizes + kSizesBytes;
    const simd::PrefixCodes codes = MakeCodes(lengths);
    for (size_t k = 0; k < kParts; ++k) {
      const size_t begin = PartBegin(raw.size(), k);
      const size_t size = PartBegin(raw.size(), k + 1) - begin;
      auto* const end = reinterpret_cast<std::byte*>(simd::EncodePrefixCodes(
          codes, reinterpret_cast<const uint8_t*>(raw.data()) + begin, size, reinterpret_cast<uint8_t*>(at)));
      if (k + 1 < kParts) StoreLE(static_cast<uint32_t>(end - at), sizes + 4 * k);
      at = end;
    }
    return static_cast<size_t>(at - encoded.data());
  }

  absl::Status Decode(ByteSpan encoded, MutableByteSpan raw) const override {
    if (encoded.size() == 1) {
      std::fill(raw.begin(), raw.end(), encoded[0]);
      return absl::OkStatus();
    }
    CodeLengths lengths;
    const size_t text_size = ReadLengths(encoded, lengths);
    if (text_size == 0) return absl::DataLossError("huffman: code lengths are damaged");
    Parts parts;
    if (!FindParts(encoded.subspan(text_size), raw, parts)) {
      return absl::DataLossError("huffman: parts do not fit their stream");
    }
    const simd::PrefixCodes codes = MakeCodes(lengths);
    thread_local simd::PrefixRuns runs;
    simd::MakePrefixRuns(codes, runs, raw.size() < kRunsFrom ? 1 : 4);
    simd::DecodePrefixRuns(runs, parts);
    for (const simd::PrefixStream& part : parts) {
      if (!DecodeRest(codes, runs, part)) return absl::DataLossError("huffman: a part does not decode to its size");
    }
    return absl::OkStatus();
  }

 private:
  using Parts = std::array<simd::PrefixStream, kParts>;

  // Fewer bytes are decoded sooner code by code than longer runs are made.
  static constexpr size_t kRunsFrom = 2048;

  static bool FindParts(ByteSpan in, MutableByteSpan raw, Parts& parts) {
    if (in.size() < kSizesBytes) return false;
    ByteSpan rest = in.subspan(kSizesBytes);
    auto* const out = reinterpret_cast<uint8_t*>(raw.data());
    for (size_t k = 0; k < kParts; ++k) {
      const size_t size = k + 1 < kParts ? LoadLE<uint32_t>(in.data() + 4 * k) : rest.size();
      if (size > rest.size()) return false;
      const auto* const begin = reinterpret_cast<const uint8_t*>(rest.data());
      parts[k] = {.in = begin,
                  .bit = 0,
                  .in_end = begin + size,
                  .out = out + PartBegin(raw.size(), k),
                  .out_end = out + PartBegin(raw.size(), k + 1)};
      rest = rest.subspan(size);
    }
    return true;
  }
};

constexpr std::string_view kExamples[] = {"raw|huffman", "int4(group=64)|huffman"};

}  // namespace

extern constinit const CodecRow kHuffman = RowOf<Huffman>("huffman",
                                                          "canonical prefix codes of at most 11 bits over each stream; "
                                                          "slow: it encodes at 1.5 to 2.2 GB/s and decodes at 1.6 "
                                                          "to 4, least over raw, where all bytes are coded",
                                                          kExamples);

}  // namespace kvcompress
