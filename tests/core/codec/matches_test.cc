#include "core/codec/matches.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <random>
#include <span>
#include <utility>

#include "core/codec/repetitions.h"
#include "tests/core/codec/bytes/byte_streams.h"
#include "tests/core/simd/guarded.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT
using Bytes = std::vector<std::byte>;

Matches MatchesIn(const Bytes& raw, size_t run) {
  std::vector<Match> found;
  Matches matches;
  FindMatches(raw, run, found);
  SplitMatches(raw, found, matches);
  return matches;
}

void ExpectRoundTrip(const Bytes& raw, size_t run) {
  const Matches matches = MatchesIn(raw, run);
  size_t literals = 0;
  ASSERT_TRUE(CountLiterals(matches.columns, raw.size(), literals));
  EXPECT_EQ(literals, matches.literals.size());
  Bytes copied(raw.size());
  ASSERT_TRUE(CopyMatches(matches.columns, matches.literals, copied));
  EXPECT_EQ(copied, raw) << raw.size() << " " << run;
}

TEST(MatchesTest, RoundTrips) {
  for (size_t size = 0; size <= 40; ++size) {
    for (const size_t run : {4, 5, 8, 32}) {
      ExpectRoundTrip(Bytes(size, std::byte{7}), run);
      ExpectRoundTrip(Geometric(size, 0.2), run);
    }
  }
  for (const double base : {0.01, 0.3, 0.9}) {
    for (const size_t run : {4, 6, 8, 10, 32}) ExpectRoundTrip(Geometric(50'000, base), run);
  }
  Bytes periodic(10'000);
  for (size_t i = 0; i < periodic.size(); ++i) periodic[i] = static_cast<std::byte>(i % 37);
  ExpectRoundTrip(periodic, 8);
}

// The matches of a search that looks at one place after another, which the bytes depend on.
Bytes ColumnsOfPlainSearch(const Bytes& raw, size_t run) {
  std::vector<std::array<size_t, 3>> found;
  std::map<uint64_t, size_t> places;  // by their slots
  const auto slot = [&](size_t at) {
    uint64_t word = 0;
    std::memcpy(&word, raw.data() + at, std::min<size_t>(run, 8));
    return word * 0x9e3779b97f4a7c15 >> 51;
  };
  const auto length = [&](size_t before, size_t at, size_t least) {
    size_t equal = 0;
    while (at + equal < raw.size() && raw[before + equal] == raw[at + equal]) ++equal;
    return equal < least ? 0 : equal;
  };
  size_t literals = 0, distance = 0;
  for (size_t at = 0; found.size() < raw.size() / kMatchColumns && at + 8 <= raw.size();) {
    size_t before = at - distance;
    size_t equal = distance > 0 ? length(before, at, run / 2) : 0;
    if (equal == 0) {
      const auto [place, is_new] = places.try_emplace(slot(at), at);
      before = std::exchange(place->second, at);
      equal = is_new ? 0 : length(before, at, run);
    }
    if (equal == 0) {
      at += 1 + ((at - literals) >> 10);
      continue;
    }
    const size_t end = at + equal;
    for (size_t k = at + 8; k < end && k + 8 <= raw.size(); k += 8) places[slot(k)] = k;
    for (; at > literals && before > 0 && raw[at - 1] == raw[before - 1]; --at) --before;
    found.push_back({at - literals, end - at, at - before == distance ? 0 : at - before});
    distance = at - before;
    literals = at = end;
  }
  Bytes columns;
  for (size_t k = 0; k < kMatchColumns; ++k) {
    for (const auto& match : found) columns.push_back(static_cast<std::byte>(match[k / 3] >> 8 * (k % 3)));
  }
  return columns;
}

TEST(MatchesTest, AreThoseOfAPlainSearch) {
  std::mt19937 random(1);
  const auto expect = [](const Bytes& raw, size_t run) {
    EXPECT_EQ(MatchesIn(raw, run).columns, ColumnsOfPlainSearch(raw, run)) << raw.size() << " " << run;
  };
  for (const size_t run : {4, 5, 8, 9, 13, 16, 17, 21, 29, 32}) {
    for (size_t size = 0; size <= 80; ++size) {
      expect(Bytes(size, std::byte{7}), run);
      expect(Geometric(size, 0.2), run);
    }
    for (const double base : {0.01, 0.3, 0.9}) expect(Geometric(50'000, base), run);
    // Half of it one byte, and pieces that stand in it twice.
    Bytes raw = Geometric(60'000, 0.8);
    for (std::byte& byte : raw) byte = random() % 2 == 0 ? std::byte{1} : byte;
    for (size_t at = 1000; at + 200 < raw.size(); at += 150 + random() % 500) {
      std::copy_n(raw.begin() + static_cast<ptrdiff_t>(random() % (at - 100)), random() % 90,
                  raw.begin() + static_cast<ptrdiff_t>(at));
    }
    expect(raw, run);
    expect(MakeBits(60'000), run);
  }
}

TEST(MatchesTest, AreCountedWithoutBeingSplit) {
  for (const double base : {0.01, 0.3, 0.9}) {
    for (const size_t run : {4, 8, 32}) {
      const Bytes raw = Geometric(50'000, base);
      std::vector<Match> found;
      FindMatches(raw, run, found);
      const Matches matches = MatchesIn(raw, run);
      EXPECT_EQ(CountLiteralBytes(raw, CountBytes(raw), found), CountBytes(matches.literals)) << base << " " << run;
      for (size_t k = 0; k < kMatchColumns; ++k) {
        const ByteSpan column = ByteSpan(matches.columns).subspan(k * found.size(), found.size());
        EXPECT_EQ(ColumnBits(found, k), EntropyBits(CountBytes(column))) << base << " " << run << " " << k;
      }
    }
  }
}

// One number of a match, as a column of three bytes would have it.
Bytes ColumnsOf(std::vector<std::array<uint32_t, 3>> matches) {
  Bytes columns;
  for (size_t k = 0; k < kMatchColumns; ++k) {
    for (const auto& match : matches) columns.push_back(static_cast<std::byte>(match[k / 3] >> 8 * (k % 3)));
  }
  return columns;
}

// Of every distance and length up to some of a copy's chunks, in the middle of the bytes and at their very end.
TEST(MatchesTest, MatchesWithinThemselvesRepeat) {
  constexpr uint32_t kMost = 70;
  const Bytes literals = MakeBits(kMost + 40);
  for (uint32_t distance = 1; distance <= kMost; ++distance) {
    for (uint32_t length = 0; length <= 3 * kMost; length += length < 40 ? 1 : 17) {
      for (const uint32_t after : {0, 1, 40}) {
        Bytes expected(literals.begin(), literals.begin() + kMost);
        for (uint32_t i = 0; i < length; ++i) expected.push_back(expected[expected.size() - distance]);
        expected.insert(expected.end(), literals.begin() + kMost, literals.begin() + kMost + after);
        const Guarded own(literals.data(), kMost + after, Guarded::Against::kPageAfter);
        Guarded raw(expected.size(), Guarded::Against::kPageAfter);
        ASSERT_TRUE(CopyMatches(ColumnsOf({{kMost, length, distance}}), std::as_bytes(own.bytes()),
                                std::as_writable_bytes(std::span(raw.data(), raw.size()))));
        ASSERT_EQ(std::memcmp(raw.data(), expected.data(), expected.size()), 0) << distance << " " << length;
      }
    }
  }
}

TEST(MatchesTest, WhatDoesNotComeToTheSizeIsRefused) {
  const Bytes two = {std::byte{1}, std::byte{2}};
  Bytes raw(10);
  const auto copies = [&](std::vector<std::array<uint32_t, 3>> matches, const Bytes& literals) {
    return CopyMatches(ColumnsOf(std::move(matches)), literals, raw);
  };
  EXPECT_TRUE(copies({{2, 8, 2}}, two));
  EXPECT_EQ(raw[9], std::byte{2});
  EXPECT_TRUE(copies({{1, 5, 1}, {1, 3, 0}}, two));
  EXPECT_FALSE(copies({{2, 7, 2}}, two));             // too little
  EXPECT_FALSE(copies({{2, 9, 2}}, two));             // too much
  EXPECT_FALSE(copies({{2, 8, 3}}, two));             // before the first byte
  EXPECT_FALSE(copies({{0, 8, 1}}, two));             // the same, with no byte there
  EXPECT_FALSE(copies({{2, 8, 0}}, two));             // no distance before
  EXPECT_FALSE(copies({{3, 7, 2}}, two));             // more literals than there are
  EXPECT_FALSE(copies({{2, 8, 2}, {1, 0, 2}}, two));  // the same, at the end
  size_t literals = 0;
  EXPECT_TRUE(CountLiterals(ColumnsOf({{0, 6, 0}, {0, 4, 0}}), 10, literals));
  EXPECT_EQ(literals, 0u);
  EXPECT_FALSE(CountLiterals(ColumnsOf({{0, 6, 0}, {0, 5, 0}}), 10, literals));
}

TEST(RepetitionsTest, RowsThatRepeatAreSeenAndNoiseIsNot) {
  std::mt19937 random(1);
  for (const size_t row : {64, 80, 128, 256}) {
    const Bytes contents = MakeBits(200 * row);
    Bytes rows;
    for (size_t i = 0; i < 1000; ++i) {
      const auto begin = contents.begin() + static_cast<ptrdiff_t>(random() % 200 * row);
      rows.insert(rows.end(), begin, begin + static_cast<ptrdiff_t>(row));
    }
    EXPECT_GT(RepeatingRuns(rows, 8), 100u) << row;
    EXPECT_EQ(RepeatingRuns(MakeBits(rows.size()), 8), 0u) << row;
  }
  for (size_t size = 0; size < 300; ++size) RepeatingRuns(Bytes(size), 32);
}

TEST(RepetitionsTest, AFewChannelsThatRepeatAreSeenWhereverTheyAre) {
  for (const size_t size : {8192, 1 << 17}) {
    for (size_t channel = 0; channel < 64; channel += 3) {
      Bytes rows = MakeBits(size);
      for (size_t at = 0; at + 64 <= size; at += 64)
        std::fill_n(rows.begin() + static_cast<ptrdiff_t>(at + channel), std::min<size_t>(6, 64 - channel),
                    std::byte{7});
      EXPECT_TRUE(IsWorthMatching(RepeatingRuns(rows, 5), rows.size()) || channel > 59) << size << " " << channel;
    }
  }
}

}  // namespace
}  // namespace kvcompress
