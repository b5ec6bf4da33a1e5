#include "core/codec/smallest_stream.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <optional>
#include <span>
#include <vector>

#include "core/base/status_macros.h"
#include "core/codec/histogram.h"
#include "core/codec/matches.h"
#include "core/codec/rans_levels.h"
#include "core/codec/rans_tables.h"
#include "core/codec/repetitions.h"

namespace kvcompress {
namespace {

// The first byte of a stream of matches; any other is the number of rANS's lanes.
constexpr auto kMatchStream = std::byte{1};

// Its head: that byte, the number of matches, and the sizes of the columns and of the literals.
constexpr size_t kMatchHeadBytes = 1 + 4 + 4 * (kMatchColumns + 1);

// Shorter streams do not gain by matches.
constexpr size_t kMinMatchedBytes = 512;

// A stream of `count` bytes by rANS: the lanes, levels, words and states. Nothing is written until Write.
class RansStream {
 public:
  // `counts`: null where no coding seems to make the bytes fewer.
  RansStream(size_t count, const Histogram* counts) : count_(count), lanes_(RansLanes(count)) {
    if (counts == nullptr || count == 0) return;
    head_[0] = static_cast<uint8_t>(lanes_);
    head_size_ = 1 + WriteLevels(*counts, head_.data() + 1, frequencies_);
    size_ = head_size_;
    if (!OnlySymbol(frequencies_)) size_ += RansBytes(*counts, frequencies_) + 4 * lanes_;
  }

  bool shrinks() const { return size_ <= most() && head_size_ > 0; }
  // About the bytes that it takes; as many as there are if it does not shrink.
  size_t size() const { return shrinks() ? size_ : count_; }

  // Writes `raw`, the bytes that were counted. Returns the bytes written, at most out.size(); 0 where it does not
  // shrink or `size` does not fit.
  size_t Write(ByteSpan raw, MutableByteSpan out) const {
    const size_t room = std::min(out.size(), most());
    if (!shrinks() || size_ > room) return 0;
    std::memcpy(out.data(), head_.data(), head_size_);
    if (OnlySymbol(frequencies_)) return head_size_;
    const size_t size = EncodeRans(frequencies_, lanes_, raw, out.first(room).subspan(head_size_));
    return size == 0 ? 0 : head_size_ + size;
  }

 private:
  // The most bytes that are worth it: fewer than there are, for as many stand for the bytes themselves.
  size_t most() const { return count_ - std::max<size_t>(1, count_ / 128); }

  const size_t count_;
  const size_t lanes_;
  size_t head_size_ = 0;
  size_t size_ = 0;
  Histogram frequencies_;
  std::array<uint8_t, 1 + kMaxLevelBytes> head_;
};

absl::Status DecodeRansStream(ByteSpan encoded, MutableByteSpan raw) {
  const size_t lanes = encoded.empty() ? 0 : std::to_integer<size_t>(encoded[0]);
  if (!IsRansLanes(lanes)) return absl::DataLossError("smallest: no such coder");
  Histogram frequencies;
  const size_t levels_size = ReadLevels(encoded.subspan(1), frequencies);
  if (levels_size == 0) return absl::DataLossError("smallest: levels are damaged");
  const ByteSpan coded = encoded.subspan(1 + levels_size);
  const std::optional<std::byte> only = OnlySymbol(frequencies);
  if (only) std::ranges::fill(raw, *only);
  if (only ? !coded.empty() : !DecodeRans(frequencies, lanes, coded, raw)) {
    return absl::DataLossError("smallest: stream does not decode to its size");
  }
  return absl::OkStatus();
}

// The columns of matches and the literals, each by rANS or as it is. Returns the bytes written, at most out.size(); 0
// where they do not fit. `literals`: their histogram, if it is known.
size_t WriteMatches(const Matches& matches, const Histogram* literals, MutableByteSpan out) {
  if (out.size() < kMatchHeadBytes) return 0;
  out[0] = kMatchStream;
  std::byte* entry = out.data() + 1;
  StoreLE(static_cast<uint32_t>(matches.count()), entry);
  size_t at = kMatchHeadBytes;
  const auto write = [&](ByteSpan part, const Histogram* known) {
    std::optional<Histogram> own;
    if (known != nullptr && !SeemsToShrink(part)) known = nullptr;
    if (known == nullptr && !part.empty()) own = CountIfItShrinks(part);
    size_t size = RansStream(part.size(), own ? &*own : known).Write(part, out.subspan(at));
    if (size == 0) {
      size = part.size();
      if (size > out.size() - at) return false;
      std::ranges::copy(part, out.begin() + static_cast<ptrdiff_t>(at));
    }
    StoreLE(static_cast<uint32_t>(size), entry += 4);
    at += size;
    return true;
  };
  for (size_t k = 0; k < kMatchColumns; ++k) {
    if (!write(ByteSpan(matches.columns).subspan(k * matches.count(), matches.count()), nullptr)) return 0;
  }
  return write(matches.literals, literals) ? at : 0;
}

// Whether WriteMatches may fit in `room` bytes; false only where it surely does not. Of literals it writes, at the
// least, what they seem to take. Of columns rANS writes more than 31/32 of their entropy: between two words of 16 bits
// a state, which is 2^15 at least, loses less than 0.4 bits by rounding.
bool MayFit(std::span<const Match> found, const Histogram& literals, size_t room) {
  const size_t count = std::accumulate(literals.begin(), literals.end(), size_t{0});
  size_t least = kMatchHeadBytes + RansStream(count, &literals).size();
  // From that which most often takes most: the low bytes of distances.
  for (const size_t column : {6, 7, 0, 3, 8, 1, 4, 2, 5}) {
    if (least > room) return false;
    least += ColumnBits(found, column) * 31 / (size_t{32} * 8);
  }
  return least <= room;
}

absl::Status DecodeMatches(ByteSpan encoded, MutableByteSpan raw) {
  if (encoded.size() < kMatchHeadBytes) return absl::DataLossError("smallest: stream ends early");
  const size_t count = LoadLE<uint32_t>(encoded.data() + 1);
  // Else a few bytes would ask for nine times the memory of a block.
  if (count > raw.size() / kMatchColumns) return absl::DataLossError("smallest: more matches than a stream has");
  ByteSpan rest = encoded.subspan(kMatchHeadBytes);
  const auto read = [&](size_t place, MutableByteSpan part) -> absl::Status {
    const size_t size = LoadLE<uint32_t>(encoded.data() + 5 + 4 * place);
    if (size > rest.size() || size > part.size()) return absl::DataLossError("smallest: a part has the wrong size");
    const ByteSpan coded = rest.first(size);
    rest = rest.subspan(size);
    if (size < part.size()) return DecodeRansStream(coded, part);
    std::ranges::copy(coded, part.begin());
    return absl::OkStatus();
  };
  thread_local Matches matches;
  matches.columns.resize(count * kMatchColumns);
  for (size_t k = 0; k < kMatchColumns; ++k) {
    KVC_RETURN_IF_ERROR(read(k, MutableByteSpan(matches.columns).subspan(k * count, count)));
  }
  size_t literals = 0;
  if (!CountLiterals(matches.columns, raw.size(), literals)) {
    return absl::DataLossError("smallest: matches are longer than the stream");
  }
  matches.literals.resize(literals);
  KVC_RETURN_IF_ERROR(read(kMatchColumns, matches.literals));
  if (!rest.empty() || !CopyMatches(matches.columns, matches.literals, raw)) {
    return absl::DataLossError("smallest: matches do not come to the stream's size");
  }
  return absl::OkStatus();
}

}  // namespace

size_t EncodeSmallest(ByteSpan raw, bool may_match, MutableByteSpan encoded) {
  if (raw.empty()) return 0;
  const std::optional<Histogram> counts = CountIfItShrinks(raw);
  const RansStream rans(raw.size(), counts ? &*counts : nullptr);
  const size_t best = std::min(encoded.size(), rans.size());
  const size_t run = MatchLengthFor(raw.size(), 8 * rans.size());
  if (may_match && raw.size() >= kMinMatchedBytes && raw.size() <= kMaxMatchedBytes &&
      IsWorthMatching(RepeatingRuns(raw, run), raw.size())) {
    thread_local std::vector<Match> found;
    thread_local Matches matches;
    FindMatches(raw, run, found);
    const MutableByteSpan room = encoded.first(best - best / 256);
    std::optional<Histogram> literals;
    // Where more bytes are matched, that most often pays.
    if (counts && MatchedBytes(found) <= raw.size() / 2) literals = CountLiteralBytes(raw, *counts, found);
    if (!literals || MayFit(found, *literals, room.size())) {
      SplitMatches(raw, found, matches);
      const size_t size = WriteMatches(matches, literals ? &*literals : nullptr, room);
      if (size > 0) return size;
    }
  }
  return rans.Write(raw, encoded);
}

absl::Status DecodeSmallest(ByteSpan encoded, MutableByteSpan raw) {
  if (!encoded.empty() && encoded[0] == kMatchStream) return DecodeMatches(encoded, raw);
  return DecodeRansStream(encoded, raw);
}

}  // namespace kvcompress
