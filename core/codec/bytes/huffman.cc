#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <optional>

#include "core/codec/bytes/huffman_code.h"
#include "core/codec/registry.h"

namespace kvcompress {
namespace {

constexpr size_t kParts = 4;
constexpr size_t kSizesBytes = 4 * (kParts - 1);

// Between two looks at the bits' position at least 57 bits are at hand: five codes.
constexpr size_t kCodesAtOnce = 5;
constexpr size_t kRunBytes = 4;

// Part k of n bytes: ceil(n / kParts) of them, the later parts fewer where they run out.
size_t PartBegin(size_t n, size_t k) { return std::min(n, k * ((n + kParts - 1) / kParts)); }

// Writes the codes of `raw` at `out`, and returns their end. Writes up to 8 bytes after it.
std::byte* EncodePart(const CodeTable& codes, ByteSpan raw, std::byte* out) {
  uint64_t pending = 0;
  uint64_t held = 0;
  const auto append = [&](std::byte byte) {
    const uint64_t code = codes[std::to_integer<size_t>(byte)];
    pending |= (code >> 4) << held;
    held += code & 15;
  };
  const auto flush = [&] {
    StoreLE(pending, out);
    out += held / 8;
    pending >>= held & ~uint64_t{7};  // at most 56
    held %= 8;
  };
  size_t i = 0;
  for (; i + kCodesAtOnce <= raw.size(); i += kCodesAtOnce) {
    for (size_t k = 0; k < kCodesAtOnce; ++k) append(raw[i + k]);
    flush();
  }
  for (; i < raw.size(); ++i) append(raw[i]);
  flush();
  if (held > 0) *out++ = static_cast<std::byte>(pending);
  return out;
}

// One part while it is decoded.
struct Part {
  const std::byte* in;  // where the byte of the next bit is
  uint32_t bit;         // which of its bits
  const std::byte* in_end;
  std::byte* out;
  std::byte* out_end;

  // Whether a whole step may read and write.
  bool HasRoom() const { return in_end - in >= 8 && out_end - out >= static_cast<ptrdiff_t>(kCodesAtOnce * kRunBytes); }
};

// Decodes whole steps of all of `parts`, side by side, while each has room.
template <size_t N>
void DecodeSteps(const RunTable& runs, Part* parts) {
  std::array<Part, N> own;
  std::copy_n(parts, N, own.begin());
  while (std::all_of(own.begin(), own.end(), [](const Part& part) { return part.HasRoom(); })) {
    // The highest bit marks how far the bits have moved.
    std::array<uint64_t, N> bits;
    for (size_t k = 0; k < N; ++k) bits[k] = (LoadLE<uint64_t>(own[k].in) | uint64_t{1} << 63) >> own[k].bit;
    for (size_t code = 0; code < kCodesAtOnce; ++code) {
      for (size_t k = 0; k < N; ++k) {
        const uint64_t run = runs[bits[k] % kCodeSlots];
        bits[k] >>= run & 63;
        StoreLE(static_cast<uint32_t>(run >> 32), own[k].out);
        own[k].out += run >> 8 & 0xff;
      }
    }
    for (size_t k = 0; k < N; ++k) {
      const auto moved = static_cast<uint32_t>(std::countl_zero(bits[k]));
      own[k].in += moved / 8;
      own[k].bit = moved % 8;
    }
  }
  std::copy_n(own.begin(), N, parts);
}

// Decodes what is left of a part, code by code. False if its bits do not end where its bytes do.
bool DecodeRest(const SymbolTable& symbols, Part part) {
  uint64_t pending = 0;
  uint32_t held = 0;
  const auto fill = [&] {
    for (; held <= 56 && part.in < part.in_end; held += 8) pending |= std::to_integer<uint64_t>(*part.in++) << held;
  };
  fill();
  if (held < part.bit) return false;
  pending >>= part.bit;
  held -= part.bit;
  while (part.out < part.out_end) {
    fill();
    const uint32_t entry = symbols[pending % kCodeSlots];
    const uint32_t length = entry >> 8;
    if (length > held) return false;
    *part.out++ = static_cast<std::byte>(entry & 0xff);
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
    const CodeTable codes = MakeCodes(lengths);
    for (size_t k = 0; k < kParts; ++k) {
      const size_t begin = PartBegin(raw.size(), k);
      std::byte* end = EncodePart(codes, raw.subspan(begin, PartBegin(raw.size(), k + 1) - begin), at);
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
    std::array<Part, kParts> parts;
    if (!FindParts(encoded.subspan(text_size), raw, parts)) {
      return absl::DataLossError("huffman: parts do not fit their stream");
    }
    thread_local SymbolTable symbols;
    MakeSymbolTable(lengths, symbols);
    if (raw.size() >= kRunsFrom) {
      thread_local RunTable runs;
      MakeRunTable(symbols, runs);
      DecodeSteps<kParts>(runs, parts.data());
      for (Part& part : parts) DecodeSteps<1>(runs, &part);
    }
    for (const Part& part : parts) {
      if (!DecodeRest(symbols, part)) return absl::DataLossError("huffman: a part does not decode to its size");
    }
    return absl::OkStatus();
  }

 private:
  // Fewer bytes are decoded sooner code by code than the table of runs is made.
  static constexpr size_t kRunsFrom = 4096;

  static bool FindParts(ByteSpan in, MutableByteSpan raw, std::array<Part, kParts>& parts) {
    if (in.size() < kSizesBytes) return false;
    ByteSpan rest = in.subspan(kSizesBytes);
    for (size_t k = 0; k < kParts; ++k) {
      const size_t size = k + 1 < kParts ? LoadLE<uint32_t>(in.data() + 4 * k) : rest.size();
      if (size > rest.size()) return false;
      parts[k] = {.in = rest.data(),
                  .bit = 0,
                  .in_end = rest.data() + size,
                  .out = raw.data() + PartBegin(raw.size(), k),
                  .out_end = raw.data() + PartBegin(raw.size(), k + 1)};
      rest = rest.subspan(size);
    }
    return true;
  }
};

constexpr std::string_view kExamples[] = {"raw|huffman", "int4(group=64)|huffman"};

}  // namespace

extern constinit const CodecRow kHuffman = RowOf<Huffman>(
    "huffman", "canonical prefix codes of at most 11 bits over each stream; slower than rans", kExamples);

}  // namespace kvcompress
