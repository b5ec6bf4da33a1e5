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
constexpr uint32_t kNowhere = ~uint32_t{0};
// After 2^kHurry bytes without a match every other byte is looked at, then every third.
constexpr int kHurry = 10;
// Places within a match are remembered in such steps.
constexpr size_t kMatchStep = 8;

struct Match {
  size_t literals;
  size_t length;
  size_t distance;
};

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
      : raw_(raw), run_(run), again_(run / 2), run_mask_(FirstBytes(run)), again_mask_(FirstBytes(again_)) {
    places_.fill(kNowhere);
  }

  // Calls `found` with at most `limit` matches.
  template <typename Found>
  void Find(size_t limit, Found found) {
    size_t literals = 0;  // begin here
    size_t distance = 0;  // of the last match
    for (size_t at = 0; limit > 0 && at + 8 <= raw_.size();) {
      size_t before = 0;
      size_t length = 0;
      if (distance > 0 && Agree(at - distance, at, again_mask_)) {
        before = at - distance;
        length = LengthIfEnough(before, at, again_);
      }
      if (length == 0) {
        const uint32_t place = std::exchange(places_[Slot(at)], static_cast<uint32_t>(at));
        if (place != kNowhere && Agree(place, at, run_mask_)) {
          before = place;
          length = LengthIfEnough(before, at, run_);
        }
      }
      if (length == 0) {
        at += 1 + ((at - literals) >> kHurry);
        continue;
      }
      size_t begin = at;
      for (; begin > literals && before > 0 && raw_[begin - 1] == raw_[before - 1]; ++length) --begin, --before;
      --limit;
      found(Match{begin - literals, length, begin - before == distance ? 0 : begin - before});
      distance = begin - before;
      const size_t end = begin + length;
      for (size_t k = at + kMatchStep; k < end && k + 8 <= raw_.size(); k += kMatchStep) {
        places_[Slot(k)] = static_cast<uint32_t>(k);
      }
      literals = at = end;
    }
  }

 private:
  uint64_t Word(size_t at) const { return LoadLE<uint64_t>(raw_.data() + at); }
  bool Agree(size_t a, size_t b, uint64_t mask) const { return ((Word(a) ^ Word(b)) & mask) == 0; }
  size_t Slot(size_t at) const { return (Word(at) & run_mask_) * 0x9e3779b97f4a7c15 >> (64 - kSlotBits); }

  size_t LengthIfEnough(size_t before, size_t at, size_t enough) const {
    const size_t length = EqualBytes(raw_, before, at);
    return length < enough ? 0 : length;
  }

  const ByteSpan raw_;
  const size_t run_;
  const size_t again_;  // at the distance of the match before, which costs less
  const uint64_t run_mask_;
  const uint64_t again_mask_;
  std::array<uint32_t, size_t{1} << kSlotBits> places_;
};

size_t NumberAt(ByteSpan columns, size_t count, size_t match, size_t number) {
  size_t value = 0;
  for (size_t k = 0; k < 3; ++k) value |= std::to_integer<size_t>(columns[(3 * number + k) * count + match]) << 8 * k;
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

void FindMatches(ByteSpan raw, size_t run, Matches& matches) {
  thread_local std::vector<Match> found;
  found.clear();
  matches.literals.clear();
  size_t at = 0;
  Finder(raw, run).Find(raw.size() / kMatchColumns, [&](const Match& match) {
    found.push_back(match);
    matches.literals.insert(matches.literals.end(), raw.begin() + static_cast<ptrdiff_t>(at),
                            raw.begin() + static_cast<ptrdiff_t>(at + match.literals));
    at += match.literals + match.length;
  });
  matches.literals.insert(matches.literals.end(), raw.begin() + static_cast<ptrdiff_t>(at), raw.end());
  matches.columns.resize(found.size() * kMatchColumns);
  for (size_t i = 0; i < found.size(); ++i) {
    const std::array<size_t, 3> numbers = {found[i].literals, found[i].length, found[i].distance};
    for (size_t k = 0; k < kMatchColumns; ++k) {
      matches.columns[k * found.size() + i] = static_cast<std::byte>(numbers[k / 3] >> 8 * (k % 3));
    }
  }
}

uint64_t MatchedBits(ByteSpan raw, size_t run) {
  thread_local Matches matches;
  FindMatches(raw, run, matches);
  uint64_t bits = EntropyBits(CountBytes(matches.literals));
  for (size_t k = 0; k < kMatchColumns; ++k) {
    bits += EntropyBits(CountBytes(ByteSpan(matches.columns).subspan(k * matches.count(), matches.count())));
  }
  return bits;
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
