#include <gmock/gmock.h>

#include <algorithm>

#include "core/codec/matches.h"
#include "core/codec/repetitions.h"
#include "core/codec/smallest_stream.h"
#include "tests/core/codec/bytes/byte_streams.h"
#include "tests/core/codec/chain_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT
using Bytes = std::vector<std::byte>;

// `rows` rows of `row` bytes, each with the content of one of `different`.
Bytes RepeatingRows(size_t rows, size_t row, size_t different, double base) {
  const Bytes contents = Geometric(different * row, base);
  std::mt19937 random(static_cast<uint32_t>(rows + row));
  Bytes bytes;
  for (size_t i = 0; i < rows; ++i) {
    const auto begin = contents.begin() + static_cast<ptrdiff_t>(random() % different * row);
    bytes.insert(bytes.end(), begin, begin + static_cast<ptrdiff_t>(row));
  }
  return bytes;
}

class SmallestTest : public ::testing::Test {
 protected:
  const std::unique_ptr<ByteCodec> codec_ = MakeByteCodec("smallest");

  Bytes Encode(const Bytes& raw) { return Encode(raw, raw.size()); }
  Bytes Encode(const Bytes& raw, size_t room) {
    constexpr auto kGuard = std::byte{0xa5};
    Bytes encoded(room + 64, kGuard);
    const auto size = codec_->Encode(raw, MutableByteSpan(encoded).first(room));
    EXPECT_THAT(size, IsOk());
    EXPECT_TRUE(std::all_of(encoded.begin() + static_cast<ptrdiff_t>(room), encoded.end(),
                            [](std::byte byte) { return byte == kGuard; }));
    encoded.resize(*size);
    return encoded;
  }

  void ExpectRoundTrip(const Bytes& raw) {
    const Bytes encoded = Encode(raw);
    if (encoded.empty()) return;
    EXPECT_LT(encoded.size(), raw.size());
    Bytes decoded(raw.size());
    ASSERT_THAT(codec_->Decode(encoded, decoded), IsOk());
    EXPECT_EQ(decoded, raw);
  }

  // `encoded` is what SmallestTest::Encode made of a stream, in exactly as many bytes as it has.
  void ExpectRefused(const Bytes& encoded, size_t size) {
    Bytes decoded(size);
    EXPECT_THAT(codec_->Decode(encoded, decoded), StatusIs(absl::StatusCode::kDataLoss, ::testing::_));
  }
};

// A part whose size is its own is kept as it is: one that its coder leaves as large must not pass for that.
TEST_F(SmallestTest, PartsOfFewMatchesAreCodedOnlyWhereTheyShrink) {
  std::mt19937 random(5);
  size_t with_matches = 0;
  for (int trial = 0; trial < 3000; ++trial) {
    const size_t rows = 30 + random() % 80;
    const size_t row = 64 + random() % 3;
    Bytes raw = MakeBits(row * rows);
    for (size_t i = 1; i < rows; ++i) {
      const size_t from = random() % i;
      if (random() % 3 == 0)
        std::copy_n(raw.begin() + static_cast<ptrdiff_t>(from * row), row,
                    raw.begin() + static_cast<ptrdiff_t>(i * row));
    }
    const Bytes encoded = Encode(raw);
    with_matches += !encoded.empty() && encoded[0] == std::byte{1};
    ExpectRoundTrip(raw);
    if (HasFatalFailure() || HasNonfatalFailure()) return;
  }
  EXPECT_GT(with_matches, 1000);
}

// Of 8 KiB the frequencies of `rans` alone are up to 4 percent.
TEST_F(SmallestTest, ReachesTheEntropyOfSmallStreams) {
  for (const double base : {0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97}) {
    for (const size_t size : {8192, 16'384, 32'768, 131'072}) {
      const Bytes raw = Geometric(size, base);
      const auto coded = static_cast<double>(Encode(raw).size());
      ASSERT_GT(coded, 0);
      // Beside the entropy and what levels round and take, the states.
      EXPECT_LT(coded, EntropyBytes(raw) * (size < 16'384 ? 1.014 : 1.01) + (size < 32'768 ? 16 : 256))
          << base << " " << size;
    }
  }
}

// Also where matches save next to nothing, which is not always seen before all parts are coded.
TEST_F(SmallestTest, TakesMatchesWhereTheySaveEnough) {
  std::mt19937 random(3);
  size_t barely = 0, not_quite = 0;
  for (int trial = 0; trial < 500; ++trial) {
    // Half of it one byte, of which short runs repeat that do not pay; and more or fewer that do.
    Bytes raw = Geometric(60'000, 0.8);
    for (std::byte& byte : raw) byte = random() % 2 == 0 ? std::byte{1} : byte;
    for (size_t at = 2000; at + 40 < raw.size(); at += 40) {
      if (random() % 3000 >= static_cast<unsigned>(trial)) continue;
      const auto before = raw.begin() + static_cast<ptrdiff_t>(at - 40 - random() % 1900);
      std::copy_n(before, 24, raw.begin() + static_cast<ptrdiff_t>(at));
    }
    const auto size_of = [](const Bytes& part) {
      Bytes out(part.size());
      const size_t size = EncodeSmallest(part, false, out);
      return size > 0 ? size : part.size();
    };
    const size_t plain = size_of(raw);
    std::vector<Match> found;
    constexpr size_t kUnsure = 40;  // by so many bytes coding takes less or more than what is reckoned beforehand
    const size_t run = MatchLengthFor(raw.size(), 8 * (plain + kUnsure));
    if (run != MatchLengthFor(raw.size(), 8 * (plain - kUnsure)) ||
        !IsWorthMatching(RepeatingRuns(raw, run), raw.size()))
      continue;
    FindMatches(raw, run, found);
    Matches matches;
    SplitMatches(raw, found, matches);
    size_t matched = 1 + 4 + 4 * (kMatchColumns + 1) + size_of(matches.literals);
    for (size_t k = 0; k < kMatchColumns; ++k) {
      const auto column = matches.columns.begin() + static_cast<ptrdiff_t>(k * found.size());
      matched += size_of(Bytes(column, column + static_cast<ptrdiff_t>(found.size())));
    }
    const size_t most = plain - plain / 256;
    const Bytes encoded = Encode(raw);
    if (matched + kUnsure < most) {
      ASSERT_EQ(encoded[0], std::byte{1}) << trial;
      ASSERT_EQ(encoded.size(), matched) << trial;
      barely += matched + matched / 200 > most;
    } else if (matched > most + kUnsure) {
      ASSERT_NE(encoded[0], std::byte{1}) << trial;
      ASSERT_EQ(encoded.size(), plain) << trial;
      not_quite += matched < most + most / 200;
    }
  }
  EXPECT_GT(barely, 10);
  EXPECT_GT(not_quite, 10);
}

TEST_F(SmallestTest, RowsThatRepeatTakeLittleMoreThanTheDifferentOnes) {
  for (const double base : {0.6, 0.97}) {
    for (const size_t row : {64, 80, 128}) {
      const Bytes rows = RepeatingRows((1 << 17) / row, row, 200, base);
      const Bytes once = Geometric(200 * row, base);
      EXPECT_LT(Encode(rows).size(), Encode(once).size() + 3 * (1 << 17) / row + 1000) << base << " " << row;
      ExpectRoundTrip(rows);
    }
  }
  const Bytes noise = MakeBits(200 * 64);
  Bytes rows;
  for (size_t i = 0; i < 10; ++i) rows.insert(rows.end(), noise.begin(), noise.end());
  EXPECT_LT(Encode(rows).size(), noise.size() + 1000);
}

TEST_F(SmallestTest, RoundTripsAllSizes) {
  std::vector<size_t> sizes = {255, 511, 512, 513, 1000, 4096, 32'767, 32'768, 32'769, 100'000, 1 << 20};
  for (size_t size = 0; size <= 70; ++size) sizes.push_back(size);
  for (const size_t size : sizes) {
    ExpectRoundTrip(Geometric(size, 0.6));
    ExpectRoundTrip(Bytes(size, std::byte{200}));
    ExpectRoundTrip(MakeBits(size));
    ExpectRoundTrip(RepeatingRows(size / 48, 48, 7, 0.9));
  }
}

TEST_F(SmallestTest, RoundTripsWhereEverySymbolOccurs) {
  for (const size_t size : {256, 300, 4096, 1 << 16, 3'000'000}) {
    Bytes raw(size, std::byte{9});
    for (size_t s = 0; s < 256; ++s) raw[s * (size / 256)] = static_cast<std::byte>(s);
    ExpectRoundTrip(raw);
  }
}

// A part of the range, a gap, and the other part: signs do that.
TEST_F(SmallestTest, RoundTripsGapsInTheAlphabet) {
  for (const unsigned gap : {1, 2, 3, 64, 127, 200}) {
    Bytes raw = Geometric(20'000, 0.7);
    for (size_t i = 0; i < raw.size(); ++i) {
      const unsigned value = std::to_integer<unsigned>(raw[i]) % 25;
      raw[i] = static_cast<std::byte>(i % 3 == 0 ? value + 25 + gap : value);
    }
    EXPECT_LT(static_cast<double>(Encode(raw).size()), EntropyBytes(raw) * 1.01 + 16);
    ExpectRoundTrip(raw);
  }
}

TEST_F(SmallestTest, LeavesOutNoise) {
  EXPECT_EQ(Encode(MakeBits(1 << 16)).size(), 0u);
  EXPECT_EQ(Encode(MakeBits(100)).size(), 0u);
  EXPECT_EQ(Encode({}).size(), 0u);
}

TEST_F(SmallestTest, NeedsNoMoreRoomThanItIsGiven) {
  for (const Bytes& raw : {Geometric(50'000, 0.7), RepeatingRows(500, 64, 30, 0.97)}) {
    const size_t needed = Encode(raw).size();
    ASSERT_GT(needed, 300u);
    for (const size_t room : {size_t{0}, size_t{1}, size_t{10}, size_t{45}, needed / 2, needed - 300, needed - 1}) {
      EXPECT_LE(Encode(raw, room).size(), room) << room;
    }
  }
}

TEST_F(SmallestTest, RefusesEveryTruncationAndWhatIsTooLong) {
  for (const Bytes& raw : {Geometric(700, 0.5), RepeatingRows(60, 64, 10, 0.97)}) {
    const Bytes encoded = Encode(raw);
    ASSERT_GT(encoded.size(), 0u);
    for (size_t keep = 0; keep < encoded.size(); ++keep) {
      ExpectRefused(Bytes(encoded.begin(), encoded.begin() + static_cast<ptrdiff_t>(keep)), raw.size());
    }
    for (size_t more = 1; more <= 9; ++more) {
      Bytes longer = encoded;
      longer.resize(encoded.size() + more);
      ExpectRefused(longer, raw.size());
    }
    ExpectRefused(encoded, raw.size() - 1);
    ExpectRefused(encoded, raw.size() + 1);
  }
}

// A match may as well refer to another place with the same bytes, and levels may give the same frequencies.
TEST_F(SmallestTest, HardlyAFlippedBitGoesUnnoticed) {
  for (const Bytes& raw : {Geometric(700, 0.5), RepeatingRows(60, 64, 10, 0.97)}) {
    const Bytes encoded = Encode(raw);
    size_t unnoticed = 0;
    for (size_t bit = 0; bit < 8 * encoded.size(); ++bit) {
      Bytes damaged = encoded;
      damaged[bit / 8] ^= std::byte{1} << bit % 8;
      Bytes decoded(raw.size());
      const absl::Status status = codec_->Decode(damaged, decoded);
      EXPECT_THAT(status, ::testing::AnyOf(IsOk(), StatusIs(absl::StatusCode::kDataLoss, ::testing::_)));
      unnoticed += status.ok() && decoded == raw;
    }
    EXPECT_LT(unnoticed, 8 * encoded.size() / 100);
  }
}

TEST_F(SmallestTest, SurvivesAnyBytes) {
  std::mt19937 random(3);
  for (int i = 0; i < 20'000; ++i) {
    Bytes bytes = MakeBits(random() % 200, static_cast<uint32_t>(random()));
    if (!bytes.empty()) bytes[0] = std::array{std::byte{1}, std::byte{4}, std::byte{64}, std::byte{0}}[random() % 4];
    // More often small numbers than at random.
    const std::byte mask = i % 3 == 1 ? std::byte{0x33} : std::byte{0x01};
    for (size_t k = 1; k < bytes.size() && i % 3 > 0; ++k) bytes[k] &= mask;
    Bytes decoded(random() % 10'000);
    EXPECT_THAT(codec_->Decode(bytes, decoded),
                ::testing::AnyOf(IsOk(), StatusIs(absl::StatusCode::kDataLoss, ::testing::_)));
  }
}

// Nine columns of one byte each, coded by rANS, would be as many matches as they are told to be.
TEST_F(SmallestTest, ColumnsTakeNoMoreMemoryThanTheStream) {
  const Bytes raw = RepeatingRows(150, 64, 10, 0.97);
  Bytes encoded = Encode(raw);
  ASSERT_EQ(encoded[0], std::byte{1});
  Bytes decoded(raw.size());
  ASSERT_THAT(codec_->Decode(encoded, decoded), IsOk());
  for (const uint32_t count : {1067u, 9600u, 9601u, ~0u}) {
    StoreLE(count, encoded.data() + 1);
    EXPECT_THAT(codec_->Decode(encoded, decoded),
                StatusIs(absl::StatusCode::kDataLoss, "smallest: more matches than a stream has"));
  }
  // Pairs that alternate: more matches than that could be found.
  Bytes pairs;
  for (size_t i = 0; i < 20'000; ++i) pairs.insert(pairs.end(), 4, static_cast<std::byte>(i * i % 251));
  ExpectRoundTrip(pairs);
}

TEST_F(SmallestTest, RefusesLevelsThatAreNone) {
  const auto refused = [&](std::initializer_list<int> bytes, std::string_view text) {
    Bytes encoded;
    for (const int byte : bytes) encoded.push_back(static_cast<std::byte>(byte));
    encoded.resize(encoded.size() + 40);
    Bytes decoded(100);
    EXPECT_THAT(codec_->Decode(encoded, decoded), StatusIs(absl::StatusCode::kDataLoss, text));
  };
  constexpr std::string_view kDamaged = "smallest: levels are damaged";
  refused({0}, "smallest: no such coder");
  refused({5}, "smallest: no such coder");
  // Twenty bits of p, r, first and last; then the levels.
  refused({4, 0x30, 0x20, 0x00}, kDamaged);                                      // first is 3, last 2
  refused({4, 0x20, 0x20, 0x00}, kDamaged);                                      // byte 2 alone, of level 0
  refused({4, 0x20, 0x40, 0x10, 0x00}, kDamaged);                                // level -1
  refused({4, 0x20, 0x20, 0xf0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, kDamaged);  // level 24 and more
}

}  // namespace
}  // namespace kvcompress
