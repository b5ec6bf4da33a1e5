#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/base/bytes.h"
#include "core/codec/histogram.h"

// LZ over the bytes of a stream: which runs of them stand earlier in the stream, too (docs/format.md, "smallest").
namespace kvcompress {

// A match is a number of literals, the length of what follows them, and how far back that stands: three numbers of
// three bytes, each byte in a column of its own, for byte codecs.
inline constexpr size_t kMatchColumns = 9;
inline constexpr size_t kMaxMatchedBytes = (size_t{1} << 24) - 1;

struct Match {
  uint32_t literals;
  uint32_t length;
  uint32_t distance;  // 0: that of the match before
};

// Matches as they are coded.
struct Matches {
  std::vector<std::byte> columns;  // all of the first, then all of the second, ...
  std::vector<std::byte> literals;

  size_t count() const { return columns.size() / kMatchColumns; }
};

// The longest that may be asked for.
inline constexpr size_t kMaxMatchLength = 32;

// Matches of at least `run` bytes, 4 or more, in at most kMaxMatchedBytes. Their columns have no more bytes than `raw`.
void FindMatches(ByteSpan raw, size_t run, std::vector<Match>& found);
// What is coded of matches that were found in `raw`.
void SplitMatches(ByteSpan raw, std::span<const Match> found, Matches& matches);

size_t MatchedBytes(std::span<const Match> found);
// The histogram of the literals, where `counts` is that of all bytes; and the order-0 entropy of a column, in bits.
Histogram CountLiteralBytes(ByteSpan raw, const Histogram& counts, std::span<const Match> found);
uint64_t ColumnBits(std::span<const Match> found, size_t column);

// The least length of a match that is worth its some 28 bits, where `count` bytes take `bits` without.
constexpr size_t MatchLengthFor(uint64_t count, uint64_t bits) {
  return bits == 0 ? kMaxMatchLength : std::clamp<uint64_t>((28 * count + bits - 1) / bits, 4, kMaxMatchLength);
}

// Fills all of `raw`; false where matches and literals do not come to that.
[[nodiscard]] bool CopyMatches(ByteSpan columns, ByteSpan literals, MutableByteSpan raw);

// How many bytes of `size` are literals beside matches with such columns; false where these match more than there are.
[[nodiscard]] bool CountLiterals(ByteSpan columns, size_t size, size_t& literals);

}  // namespace kvcompress
