#include "core/codec/matches.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <utility>

#include "core/codec/histogram.h"

namespace kvcompress {
namespace {

constexpr int kSlotBits = 13;
// After 2^kHurry bytes without a match every other byte is looked at, then every third.
constexpr int kHurry = 10;
// Places within a match are remembered in such steps.
constexpr size_t kMatchStep = 8;

// How many bytes from `a` and from `b` > `a` on are equal.
size_t EqualBytes(ByteSpan raw, size_t a, size_t b) {
  const size_t begin = b;
  for (; b + 8 <= raw.size(); a += 8, b += 8) {
    const uint64_t differ = LoadLE<uint64_t>(raw.data() + a) ^ LoadLE<uint64_t>(raw.data() + b);
    if (differ != 0) return b - begin + static_cast<size_t>(std::countr_zero(differ)) / 8;
  }
  while (b < raw.size() && raw[a] == raw[b]) ++a, ++b;
  return b - begin;
}

// A mask of the first `count` bytes, at most all 8, of a word.
constexpr uint64_t FirstBytes(size_t count) { return count < 8 ? (uint64_t{1} << 8 * count) - 1 : ~uint64_t{0}; }

class Finder {
 public:
  Finder(ByteSpan raw, size_t run)
      : raw_(raw), run_(run), again_(run / 2), run_mask_(FirstBytes(run)), again_mask_(FirstBytes(again_)) {}

  // Adds at most `limit` matches.
  void Find(size_t limit, std::vector<Match>& found) {
    if (raw_.size() < 8) return;
    size_t literals = 0;  // begin here
    // A slot that no place has yet is as good as one of place 0: what stands there agrees with nothing of another slot.
    Remember(0);
    at_ = 1;
    while (limit > 0) {
      size_t length = NextMatch(literals);
      if (length == 0) return;
      size_t begin = at_, before = before_;
      for (; begin > literals && before > 0 && raw_[begin - 1] == raw_[before - 1]; ++length) --begin, --before;
      --limit;
      const size_t distance = begin - before;
      found.push_back({static_cast<uint32_t>(begin - literals), static_cast<uint32_t>(length),
                       static_cast<uint32_t>(distance == distance_ ? 0 : distance)});
      distance_ = distance;
      const size_t end = begin + length;
      for (size_t k = at_ + kMatchStep; k < end && k + 8 <= raw_.size(); k += kMatchStep) Remember(k);
      literals = at_ = end;
    }
  }

 private:
  // Moves at_ and before_ to where the next match and what it repeats have been found; returns how far they are equal
  // from there on, 0 where there is no match any more.
  size_t NextMatch(size_t literals) {
    const size_t end_of_words = raw_.size() - 7;
    const size_t end_of_runs = raw_.size() - std::min(raw_.size(), run_ - 1);
    size_t length = 0;
    while (length == 0 && at_ < end_of_words) {
      const size_t step = 1 + ((at_ - literals) >> kHurry);
      const size_t stop = std::min(end_of_words, literals + (step << kHurry));
      const bool has_long_runs = run_ > 8 && at_ < end_of_runs;
      const size_t end = has_long_runs ? std::min(stop, end_of_runs) : stop;
      if (step > 1) {
        length = has_long_runs ? Look<true, false>(step, end) : Look<false, false>(step, end);
      } else {
        length = has_long_runs ? Look<true, true>(step, end) : Look<false, true>(step, end);
      }
    }
    return length;
  }

  // Looks at every `step`th place before `stop` until one has a match; `step` is 1 with kEach. With kLong runs are
  // longer than a word, and all of one is there at each place: then two words are compared, as many places agree in one
  // where few bytes are usual. Not inlined, so that what the loop needs stays in registers.
  template <bool kLong, bool kEach>
  [[gnu::noinline]] size_t Look(size_t step, size_t stop) {
    const size_t second = kLong ? std::min<size_t>(8, run_ - 8) : 0;
    const std::byte* const raw = raw_.data();
    const uint64_t run_mask = run_mask_, again_mask = again_mask_;
    const size_t distance = distance_;
    uint32_t* const places = places_.data();
    const auto end_at = [this](size_t at, size_t before, size_t length) {
      at_ = at;
      before_ = before;
      return length;
    };
    for (size_t at = at_;; at += kEach ? 1 : step) {
      if (at >= stop) return end_at(at, 0, 0);
      const auto word = LoadLE<uint64_t>(raw + at);
      if (distance > 0 && ((LoadLE<uint64_t>(raw + at - distance) ^ word) & again_mask) == 0) {
        const size_t length = LengthIfEnough(at - distance, at, again_);
        if (length > 0) return end_at(at, at - distance, length);
      }
      const size_t place = std::exchange(places[SlotOf(word & run_mask)], static_cast<uint32_t>(at));
      uint64_t differ = (LoadLE<uint64_t>(raw + place) ^ word) & run_mask;
      if constexpr (kLong) differ |= LoadLE<uint64_t>(raw + place + second) ^ LoadLE<uint64_t>(raw + at + second);
      if (differ == 0) {
        const size_t length = LengthIfEnough(place, at, run_);
        if (length > 0) return end_at(at, place, length);
      }
    }
  }

  uint64_t Word(size_t at) const { return LoadLE<uint64_t>(raw_.data() + at); }
  static size_t SlotOf(uint64_t run) { return run * 0x9e3779b97f4a7c15 >> (64 - kSlotBits); }
  void Remember(size_t at) { places_[SlotOf(Word(at) & run_mask_)] = static_cast<uint32_t>(at); }

  // How far both are equal, where that is enough; else 0. Their first words are, as far as `enough` goes.
  size_t LengthIfEnough(size_t before, size_t at, size_t enough) const {
    if (enough > 8) {
      if (at + enough > raw_.size()) return 0;
      // All of it, in words that may overlap: without a branch for each.
      uint64_t differ = 0;
      for (const size_t from : {size_t{8}, size_t{16}, enough - 8}) {
        const size_t i = std::min(from, enough - 8);
        differ |= Word(before + i) ^ Word(at + i);
      }
      if (differ != 0) return 0;
    }
    const size_t length = EqualBytes(raw_, before, at);
    return length < enough ? 0 : length;
  }

  const ByteSpan raw_;
  const size_t run_;
  const size_t again_;  // at the distance of the match before, which costs less
  const uint64_t run_mask_;
  const uint64_t again_mask_;
  size_t at_ = 0;
  size_t before_ = 0;
  size_t distance_ = 0;  // of the last match
  std::array<uint32_t, size_t{1} << kSlotBits> places_ = {};
};

// A byte of a match, as it stands in column `k`.
uint8_t ColumnByte(const Match& match, size_t k) {
  const uint32_t number = k < 3 ? match.literals : k < 6 ? match.length : match.distance;
  return static_cast<uint8_t>(number >> 8 * (k % 3));
}

uint32_t NumberAt(ByteSpan columns, size_t count, size_t match, size_t number) {
  uint32_t value = 0;
  for (size_t k = 0; k < 3; ++k) {
    value |= std::to_integer<uint32_t>(columns[(3 * number + k) * count + match]) << 8 * k;
  }
  return value;
}

Match MatchAt(ByteSpan columns, size_t match) {
  const size_t count = columns.size() / kMatchColumns;
  return {NumberAt(columns, count, match, 0), NumberAt(columns, count, match, 1), NumberAt(columns, count, match, 2)};
}

// Copies `count` bytes, at most those of either room, which do not overlap, and perhaps more of them: a copy of fixed
// size is much sooner than one of any.
void CopyAtLeast(const std::byte* from, size_t from_room, std::byte* to, size_t to_room, size_t count) {
  constexpr size_t kChunk = 32;
  if (count <= kChunk && std::min(from_room, to_room) >= kChunk) {
    std::memcpy(to, from, kChunk);
  } else if (count > 0) {
    std::memcpy(to, from, count);
  }
}

// Sets `bytes` to the `size` literals of `raw`, or to the bytes that are matched, one after the other.
template <bool kLiterals>
void Gather(ByteSpan raw, std::span<const Match> found, size_t size, std::vector<std::byte>& bytes) {
  bytes.resize(size);
  MutableByteSpan to(bytes);
  size_t at = 0;
  const auto take = [&](size_t count) {
    CopyAtLeast(raw.data() + at, raw.size() - at, to.data(), to.size(), count);
    to = to.subspan(count);
  };
  for (const Match& match : found) {
    if (kLiterals) take(match.literals);
    at += match.literals;
    if (!kLiterals) take(match.length);
    at += match.length;
  }
  if (kLiterals) take(raw.size() - at);
}

// Fills the first `length` bytes of `to` with those `distance` in front of each. More may be written.
void Repeat(size_t distance, MutableByteSpan to, size_t length) {
  const std::byte* const from = to.data() - distance;
  // What is repeated grows by all that has been copied, so a match within itself takes few copies.
  for (size_t done = 0; done < length;) {
    const size_t repeated = distance + done;
    const size_t count = std::min(repeated, length - done);
    CopyAtLeast(from, repeated, to.data() + done, to.size() - done, count);
    done += count;
  }
}

}  // namespace

void FindMatches(ByteSpan raw, size_t run, std::vector<Match>& found) {
  found.clear();
  Finder(raw, run).Find(raw.size() / kMatchColumns, found);
}

size_t MatchedBytes(std::span<const Match> found) {
  size_t matched = 0;
  for (const Match& match : found) matched += match.length;
  return matched;
}

void SplitMatches(ByteSpan raw, std::span<const Match> found, Matches& matches) {
  Gather<true>(raw, found, raw.size() - MatchedBytes(found), matches.literals);
  matches.columns.resize(found.size() * kMatchColumns);
  for (size_t k = 0; k < kMatchColumns; ++k) {
    std::byte* const column = matches.columns.data() + k * found.size();
    for (size_t i = 0; i < found.size(); ++i) column[i] = std::byte{ColumnByte(found[i], k)};
  }
}

Histogram CountLiteralBytes(ByteSpan raw, const Histogram& counts, std::span<const Match> found) {
  thread_local std::vector<std::byte> fewer;
  const size_t matched = MatchedBytes(found);
  if (matched > raw.size() / 2) {
    Gather<true>(raw, found, raw.size() - matched, fewer);
    return CountBytesSoon(fewer);
  }
  Gather<false>(raw, found, matched, fewer);
  Histogram literals = CountBytesSoon(fewer);
  for (size_t s = 0; s < literals.size(); ++s) literals[s] = counts[s] - literals[s];
  return literals;
}

uint64_t ColumnBits(std::span<const Match> found, size_t column) {
  std::array<Histogram, 2> counts = {};  // equal bytes in a row would wait for each other's counter
  unsigned any = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    const uint8_t byte = ColumnByte(found[i], column);
    any |= byte;
    ++counts[i % 2][byte];
  }
  if (any == 0) return 0;  // as is usual for high bytes
  for (size_t s = 0; s < counts[0].size(); ++s) counts[0][s] += counts[1][s];
  return EntropyBits(counts[0]);
}

bool CountLiterals(ByteSpan columns, size_t size, size_t& literals) {
  const size_t count = columns.size() / kMatchColumns;
  literals = size;
  for (size_t i = 0; i < count; ++i) {
    const size_t length = NumberAt(columns, count, i, 1);
    if (length > literals) return false;
    literals -= length;
  }
  return true;
}

bool CopyMatches(ByteSpan columns, ByteSpan literals, MutableByteSpan raw) {
  size_t at = 0;
  const auto take = [&](size_t count) {
    if (count > literals.size() || count > raw.size() - at) return false;
    CopyAtLeast(literals.data(), literals.size(), raw.data() + at, raw.size() - at, count);
    literals = literals.subspan(count);
    at += count;
    return true;
  };
  const size_t count = columns.size() / kMatchColumns;
  size_t distance = 0;
  for (size_t i = 0; i < count; ++i) {
    const Match match = MatchAt(columns, i);
    if (match.distance > 0) distance = match.distance;
    if (!take(match.literals) || distance == 0 || distance > at || match.length > raw.size() - at) {
      return false;
    }
    Repeat(distance, raw.subspan(at), match.length);
    at += match.length;
  }
  return take(literals.size()) && at == raw.size();
}

}  // namespace kvcompress
