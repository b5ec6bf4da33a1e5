#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

// The loops of the byte codec `huffman` (docs/format.md, "huffman"): codes of at most 11 bits for bytes, one after the
// other from the low end of each byte up. Nothing here allocates or needs alignment.
namespace kvcompress::simd {

inline constexpr int kMaxPrefixBits = 11;

// The bits of each symbol's code, the first one lowest, and their number.
struct PrefixCodes {
  std::array<uint64_t, 256> bits;
  std::array<uint64_t, 256> lengths;
};

// Writes the codes of `size` bytes at `out`, and returns their end. Writes up to 8 bytes after it.
uint8_t* EncodePrefixCodes(const PrefixCodes& codes, const uint8_t* raw, size_t size, uint8_t* out);

// For the next kMaxPrefixBits bits of a stream, all codes that they hold whole, up to four: bits 0 to 7 their length
// together, 16 to 47 the symbols, 56 to 63 their number. Added up, five of them keep both sums apart.
using PrefixRuns = std::array<uint64_t, size_t{1} << kMaxPrefixBits>;

// `codes` is complete: every sequence of kMaxPrefixBits bits begins with one. Runs of at most `most` codes, up to four:
// the fewer, the sooner they are made.
void MakePrefixRuns(const PrefixCodes& codes, PrefixRuns& runs, size_t most = 4);

// What is left of a stream of codes while it is decoded.
struct PrefixStream {
  const uint8_t* in;  // where the byte of the next bit is
  uint32_t bit;       // which of its bits
  const uint8_t* in_end;
  uint8_t* out;
  uint8_t* out_end;
};

// Decodes streams side by side until each is near an end of its bytes, of those that are read or those that are
// written: a few dozen are left.
inline constexpr size_t kPrefixStreams = 4;
void DecodePrefixRuns(const PrefixRuns& runs, std::array<PrefixStream, kPrefixStreams>& streams);

}  // namespace kvcompress::simd
