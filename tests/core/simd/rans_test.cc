#include "core/simd/rans.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "core/simd/cpu_features.h"
#include "tests/core/simd/guarded.h"
#include "tests/core/simd/with_target.h"

namespace kvcompress::simd {
namespace {

using ::kvcompress::testing::Guarded;
using ::kvcompress::testing::UsableTargets;
using ::kvcompress::testing::WithTarget;

using Bytes = std::vector<uint8_t>;

// Frequencies, and bytes that have about these.
struct Source {
  std::array<uint32_t, 256> frequencies = {};
  RansSymbolTable symbols;
  RansSlotTable slots;

  explicit Source(const std::array<uint32_t, 256>& given) : frequencies(given) {
    uint32_t slot = 0;
    for (uint32_t s = 0; s < 256; ++s) {
      symbols[s] = frequencies[s] | slot << 16;
      for (uint32_t i = 0; i < frequencies[s]; ++i, ++slot) slots[slot] = s << 24 | (frequencies[s] - 1) << 12 | i;
    }
    if (slot != kRansSlots) std::abort();
  }

  // With each symbol's own frequency, or all symbols alike: then rare ones come much too often and states grow fast.
  Bytes Draw(size_t count, bool alike) const {
    std::mt19937 random(static_cast<uint32_t>(count) + 5);
    Bytes present;
    for (size_t s = 0; s < 256; ++s) {
      if (frequencies[s] > 0) present.push_back(static_cast<uint8_t>(s));
    }
    Bytes bytes(count);
    for (uint8_t& byte : bytes) {
      byte = alike ? present[random() % present.size()] : static_cast<uint8_t>(slots[random() % kRansSlots] >> 24);
    }
    return bytes;
  }
};

std::vector<Source> Sources() {
  std::array<uint32_t, 256> one = {}, two = {}, uniform = {}, halves = {}, rare = {};
  one[77] = kRansSlots;
  two[0] = kRansSlots - 1;
  two[255] = 1;
  uniform.fill(kRansSlots / 256);
  for (uint32_t s = 0, left = kRansSlots; s < 12; ++s) {
    halves[s * 21] = s == 11 ? left : left / 2;
    left -= left / 2;
  }
  rare.fill(1);
  rare[3] = kRansSlots - 255;
  return {Source(one), Source(two), Source(uniform), Source(halves), Source(rare)};
}

constexpr size_t kCounts[] = {0, 1, 2, 5, 63, 64, 65, 127, 128, 1000, 4096, 20011};
constexpr size_t kAllLanes[] = {kRansNarrowLanes, kRansWideLanes};

size_t Room(size_t count, size_t lanes) { return 2 * count + 6 * lanes; }

// How entries of tables are looked up.
enum class LookUps { kLoads, kGathers, kPermutations };

std::string NameOf(LookUps look_ups) {
  constexpr const char* kNames[] = {"loads", "gathers", "permutations"};
  return kNames[static_cast<size_t>(look_ups)];
}

std::vector<LookUps> UsableLookUps() {
  std::vector<LookUps> usable = {LookUps::kLoads, LookUps::kGathers};
  if (PermutesBytes()) usable.push_back(LookUps::kPermutations);
  return usable;
}

// Instruction sets, on CPUs that gather well, on those that permute bytes, and on others.
class RansTest : public ::testing::TestWithParam<std::tuple<int64_t, LookUps>> {
 protected:
  RansTest() {
    SetGathersWellForTest(std::get<1>(GetParam()) == LookUps::kGathers);
    SetPermutesBytesForTest(std::get<1>(GetParam()) == LookUps::kPermutations);
  }
  ~RansTest() override {
    SetGathersWellForTest(gathers_well_);
    SetPermutesBytesForTest(permutes_bytes_);
  }

 private:
  const WithTarget with_{std::get<0>(GetParam())};
  const bool gathers_well_ = GathersWell();
  const bool permutes_bytes_ = PermutesBytes();
};

INSTANTIATE_TEST_SUITE_P(All, RansTest,
                         ::testing::Combine(::testing::ValuesIn(UsableTargets()), ::testing::ValuesIn(UsableLookUps())),
                         [](const auto& param) {
                           return std::string(hwy::TargetName(std::get<0>(param.param))) + "_" +
                                  NameOf(std::get<1>(param.param));
                         });

TEST_P(RansTest, GivesTheBytesOfTheDefinitionAndBack) {
  for (const Source& source : Sources()) {
    for (const size_t lanes : kAllLanes) {
      for (const size_t count : kCounts) {
        for (const bool alike : {false, true}) {
          SCOPED_TRACE(::testing::Message() << lanes << " lanes, " << count << " bytes");
          const Bytes raw = source.Draw(count, alike);
          Bytes expected(Room(count, lanes));
          const size_t size =
              scalar::RansEncode(source.symbols, raw.data(), count, lanes, expected.data(), expected.size());
          ASSERT_GE(size, 4 * lanes);
          const Guarded in(raw.data(), count, Guarded::Against::kPageAfter);
          Guarded out(Room(count, lanes), Guarded::Against::kPageAfter);
          ASSERT_EQ(RansEncode(source.symbols, in.data(), count, lanes, out.data(), out.size()), size);
          ASSERT_TRUE(std::equal(out.data(), out.data() + size, expected.data()));

          for (const auto against : {Guarded::Against::kPageBefore, Guarded::Against::kPageAfter}) {
            const Guarded coded(expected.data(), size, against);
            Guarded decoded(count, against);
            ASSERT_TRUE(RansDecode(source.slots, coded.data(), size, lanes, decoded.data(), count));
            ASSERT_TRUE(std::equal(raw.begin(), raw.end(), decoded.data()));
            Bytes by_definition(count);
            ASSERT_TRUE(scalar::RansDecode(source.slots, coded.data(), size, lanes, by_definition.data(), count));
            ASSERT_EQ(by_definition, raw);
          }
        }
      }
    }
  }
}

// The rule for the room decides whether a stream is coded at all: it must be the same everywhere.
TEST_P(RansTest, GivesUpWhereTheDefinitionDoes) {
  const Source source = Sources()[4];
  const size_t count = 700;
  const Bytes raw = source.Draw(count, true);
  size_t refused = 0;
  for (size_t capacity = 0; capacity <= Room(count, kRansWideLanes); ++capacity) {
    Bytes expected(capacity);
    const size_t size =
        scalar::RansEncode(source.symbols, raw.data(), count, kRansWideLanes, expected.data(), capacity);
    Guarded out(capacity, Guarded::Against::kPageAfter);
    ASSERT_EQ(RansEncode(source.symbols, raw.data(), count, kRansWideLanes, out.data(), capacity), size) << capacity;
    ASSERT_LE(size, capacity);
    refused += size == 0;
  }
  EXPECT_GT(refused, count);
  EXPECT_LT(refused, Room(count, kRansWideLanes));
}

TEST_P(RansTest, RefusesWhatNoEncoderWrote) {
  const Source source = Sources()[3];
  for (const size_t lanes : kAllLanes) {
    const size_t count = 3000;
    const Bytes raw = source.Draw(count, false);
    Bytes coded(Room(count, lanes));
    coded.resize(RansEncode(source.symbols, raw.data(), count, lanes, coded.data(), coded.size()));
    // A coded stream stands for one sequence of bytes: what decodes must be what encoding the result gives.
    const auto decodes = [&](const Bytes& bytes, size_t bytes_out) {
      const Guarded in(bytes.data(), bytes.size(), Guarded::Against::kPageAfter);
      Guarded out(bytes_out, Guarded::Against::kPageAfter);
      const bool ok = RansDecode(source.slots, in.data(), bytes.size(), lanes, out.data(), bytes_out);
      Bytes expected(bytes_out);
      EXPECT_EQ(scalar::RansDecode(source.slots, in.data(), bytes.size(), lanes, expected.data(), bytes_out), ok);
      if (ok) {
        Bytes again(Room(bytes_out, lanes));
        again.resize(RansEncode(source.symbols, out.data(), bytes_out, lanes, again.data(), again.size()));
        EXPECT_EQ(again, bytes);
      }
      return ok;
    };
    ASSERT_TRUE(decodes(coded, count));
    size_t refused = 0;
    size_t flips = 0;
    for (size_t bit = 0; bit < 8 * coded.size(); bit += 7, ++flips) {
      Bytes damaged = coded;
      damaged[bit / 8] = static_cast<uint8_t>(damaged[bit / 8] ^ 1u << bit % 8);
      refused += !decodes(damaged, count);
    }
    EXPECT_GT(refused, flips * 9 / 10);
    for (size_t size = 0; size < coded.size(); size += 3)
      EXPECT_FALSE(decodes(Bytes(coded.begin(), coded.begin() + static_cast<ptrdiff_t>(size)), count));
    Bytes longer = coded;
    longer.insert(longer.begin(), 2, 0);
    EXPECT_FALSE(decodes(longer, count));
    EXPECT_FALSE(decodes(coded, count - 1));
    EXPECT_FALSE(decodes(coded, count + 1));
    EXPECT_FALSE(decodes(Bytes(coded.size(), 0xff), count));
    EXPECT_FALSE(decodes(Bytes(coded.size(), 0), count));
  }
}

// Where words end within the last whole group. What zeros in place of them stand for asks for one more in the group
// after it, which is not whole.
TEST_P(RansTest, RefusesWordsThatAreCutOffOfTheLastWholeGroup) {
  std::array<uint32_t, 256> frequencies = {};
  frequencies[0] = 1;
  frequencies[5] = 200;
  frequencies[9] = kRansSlots - 201;
  const Source source(frequencies);
  Bytes raw(4 * kRansWideLanes - 1, 9);
  std::fill_n(raw.begin() + 2 * kRansWideLanes, kRansWideLanes, 0);
  std::fill(raw.begin() + 3 * kRansWideLanes, raw.end(), 5);
  Bytes coded(Room(raw.size(), kRansWideLanes));
  coded.resize(RansEncode(source.symbols, raw.data(), raw.size(), kRansWideLanes, coded.data(), coded.size()));
  ASSERT_EQ(coded.size(), 4 * kRansWideLanes + 2 * (kRansWideLanes - 1));
  for (size_t cut = 0; cut < 2 * kRansWideLanes; cut += 2) {
    const Guarded in(coded.data() + cut, coded.size() - cut, Guarded::Against::kPageBefore);
    Guarded out(raw.size(), Guarded::Against::kPageAfter);
    const bool ok = RansDecode(source.slots, in.data(), in.size(), kRansWideLanes, out.data(), out.size());
    EXPECT_EQ(ok, cut == 0) << cut;
    EXPECT_TRUE(cut > 0 || std::equal(raw.begin(), raw.end(), out.data()));
  }
}

// All quotients near the borders of their range, where an approximate division would go wrong.
TEST_P(RansTest, DividesExactly) {
  const auto check = [](const Source& source, const Bytes& raw, uint32_t frequency) {
    for (const size_t lanes : kAllLanes) {
      Bytes expected(Room(raw.size(), lanes)), got(expected.size());
      const size_t size =
          scalar::RansEncode(source.symbols, raw.data(), raw.size(), lanes, expected.data(), expected.size());
      ASSERT_EQ(RansEncode(source.symbols, raw.data(), raw.size(), lanes, got.data(), got.size()), size);
      ASSERT_EQ(got, expected) << frequency;
    }
  };
  for (const uint32_t frequency : {1u, 2u, 3u, 7u, 127u, 255u, 1000u, 2047u, 2049u, 4093u, 4095u}) {
    std::array<uint32_t, 256> frequencies = {};
    frequencies[0] = kRansSlots - frequency;
    frequencies[9] = frequency;
    const Source source(frequencies);
    for (uint32_t seed = 0; seed < 20; ++seed) {
      std::mt19937 random(seed);
      Bytes raw(kRansWideLanes * 200);
      for (uint8_t& byte : raw) byte = random() % 3 == 0 ? 0 : 9;
      check(source, raw, frequency);
    }
  }
  // Every frequency, among others below which no symbol has to be for the states to be held in halves.
  for (uint32_t frequency = 1; frequency < kRansSlots - 1; ++frequency) {
    std::array<uint32_t, 256> frequencies = {};
    frequencies[200] = frequency;
    uint32_t left = kRansSlots - frequency;
    for (size_t s = 7; left > 0; s += 23) {
      frequencies[s] = std::min(left, 611u);
      left -= frequencies[s];
    }
    const Source source(frequencies);
    std::mt19937 random(frequency);
    Bytes raw(kRansWideLanes * 20);
    for (uint8_t& byte : raw) byte = random() % 8 == 0 ? 7 : 200;
    check(source, raw, frequency);
  }
}

}  // namespace
}  // namespace kvcompress::simd
