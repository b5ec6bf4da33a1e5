#include "core/simd/channel_rans.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/simd/cpu_features.h"
#include "core/simd/segment_values.h"
#include "core/simd/trellis.h"
#include "tests/core/simd/guarded.h"
#include "tests/core/simd/strip_tables.h"
#include "tests/core/simd/with_target.h"

namespace kvcompress::simd {
namespace {

using ::kvcompress::testing::Guarded;
using ::kvcompress::testing::MakeSymbols;
using ::kvcompress::testing::SomeTables;
using ::kvcompress::testing::StripOf;
using ::kvcompress::testing::UsableTargets;
using ::kvcompress::testing::WithTarget;

// Instruction sets, on CPUs that gather well and on others.
class ChannelRansTest : public ::testing::TestWithParam<std::tuple<int64_t, bool>> {
 protected:
  ChannelRansTest() { SetGathersWellForTest(std::get<1>(GetParam())); }
  ~ChannelRansTest() override { SetGathersWellForTest(gathers_well_); }

 private:
  const WithTarget with_{std::get<0>(GetParam())};
  const bool gathers_well_ = GathersWell();
};

INSTANTIATE_TEST_SUITE_P(All, ChannelRansTest,
                         ::testing::Combine(::testing::ValuesIn(UsableTargets()), ::testing::Bool()),
                         [](const auto& param) {
                           return std::string(hwy::TargetName(std::get<0>(param.param))) +
                                  (std::get<1>(param.param) ? "_gathers" : "_loads");
                         });

// Escapes that are known.
class KnownEscapes final : public EscapeReader {
 public:
  int32_t Next() override { return beyond[read++]; }

  std::vector<int32_t> beyond;
  size_t read = 0;
};

// Points as DecodeStrip places them where they are to become themselves.
class Points {
 public:
  explicit Points(size_t count) : values_(count) {}

  Placing placing() { return {{DType::kF32, values_.data(), kStripChannels}, 1, no_means_.data()}; }
  int32_t operator[](size_t i) const { return static_cast<int32_t>(values_[i]); }
  bool operator==(const std::vector<int32_t>& points) const {
    return std::equal(points.begin(), points.end(), values_.begin(), values_.end());
  }

 private:
  std::vector<float> values_;
  std::array<float, kStripChannels> no_means_ = {};
};

// What a strip of random values is coded as.
struct CodedStrip {
  std::vector<ChannelTable> tables = SomeTables();
  StripTables strip;
  std::vector<int32_t> k;
  std::vector<uint8_t> symbols;
  std::vector<uint32_t> escapes;
  std::vector<uint8_t> words;
  size_t tokens;
  size_t channels;
  size_t lanes;

  CodedStrip(size_t token_count, size_t channel_count, size_t lane_count, bool trellis, bool with_escapes,
             bool with_low_bits = false)
      : strip(StripOf(tables, with_low_bits)), tokens(token_count), channels(channel_count), lanes(lane_count) {
    std::mt19937 random(static_cast<uint32_t>(tokens + channels));
    k.resize(tokens * kStripChannels);
    for (size_t i = 0; i < k.size(); ++i) {
      const size_t c = i % kStripChannels;
      const int32_t reach = strip[c].reach[0];
      k[i] = reach == 0 ? 0 : static_cast<int32_t>(random() % (2 * static_cast<uint32_t>(reach) + 1)) - reach;
      if (!with_escapes) k[i] = std::clamp<int32_t>(k[i], -strip[c].reach[1], strip[c].reach[1]);
      if (with_escapes && random() % 500 == 0) k[i] = k[i] < 0 ? -64 : 63;
      k[i] = k[i] * (1 << strip.low_bits[c]) + static_cast<int32_t>(random() % (1u << strip.low_bits[c]));
    }
    symbols.resize(k.size());
    escapes.resize(tokens);
    MakeSymbols(strip, k, channels, trellis, symbols, escapes);
    words.resize(8 * k.size() + 1000);
  }

  // Of all tokens, in their order.
  KnownEscapes Escapes() const {
    KnownEscapes known;
    for (size_t t = 0; t < tokens; ++t) {
      for (size_t c = 0; c < channels; ++c) {
        if ((escapes[t] >> c & 1) == 0) continue;
        const size_t at = t * kStripChannels + c;
        const int32_t reach = strip[c].reach[(symbols[at] & kOddQuantizer) != 0 ? 1 : 0];
        const int32_t high = k[at] >> strip.low_bits[c];
        known.beyond.push_back(high < 0 ? high + reach : high - reach);
      }
    }
    return known;
  }

  std::vector<uint8_t> EncodeByDefinition() {
    ChannelRansEncoder encoder(lanes, words.data(), words.size());
    EXPECT_TRUE(scalar::EncodeStrip(strip, symbols.data(), k.data(), tokens, channels, encoder));
    return {words.begin(), words.begin() + static_cast<ptrdiff_t>(encoder.Finish())};
  }

  std::vector<uint8_t> Encode() {
    ChannelRansEncoder encoder(lanes, words.data(), words.size());
    EXPECT_TRUE(EncodeStrip(strip, symbols.data(), k.data(), tokens, channels, encoder));
    return {words.begin(), words.begin() + static_cast<ptrdiff_t>(encoder.Finish())};
  }
};

TEST_P(ChannelRansTest, WordsDecodeToTheirPoints) {
  for (const size_t lanes : {1, 2, 4, 8, 16, 32, 64}) {
    for (const size_t channels : {1, 16, 20, 32}) {
      for (const bool trellis : {false, true}) {
        for (const int kind : {0, 1, 2, 3}) {
          SCOPED_TRACE(::testing::Message() << lanes << " lanes " << channels << " channels " << trellis << kind);
          CodedStrip coded(300, channels, lanes, trellis, kind % 2 != 0, kind >= 2);
          const std::vector<uint8_t> bytes = coded.Encode();
          ASSERT_EQ(bytes, coded.EncodeByDefinition());
          const Guarded in(bytes.data(), bytes.size(), Guarded::Against::kPageAfter);
          ChannelRansDecoder decoder;
          ASSERT_TRUE(decoder.Begin(lanes, in.data(), in.size()));
          StripStates states = {};
          Points points(coded.k.size());
          KnownEscapes escapes = coded.Escapes();
          EXPECT_EQ(escapes.beyond.empty(), kind % 2 == 0);
          ASSERT_TRUE(DecodeStrip(coded.strip, coded.tokens, channels, trellis ? &states : nullptr, decoder, escapes,
                                  points.placing()));
          EXPECT_EQ(escapes.read, escapes.beyond.size());
          EXPECT_TRUE(decoder.Finish());
          StripStates expected = {};
          for (size_t t = 0; t < coded.tokens; ++t) {
            for (size_t c = 0; c < channels; ++c) {
              const int32_t k = coded.k[t * kStripChannels + c];
              ASSERT_EQ(points[t * kStripChannels + c], PointOf(k, QuantizerOf(expected[c]))) << t << " " << c;
              if (trellis) expected[c] = NextState(expected[c], k % 2 != 0);
            }
          }
        }
      }
    }
  }
}

// As the definition does, in all dtypes, and nothing beside them.
TEST_P(ChannelRansTest, PointsBecomeValues) {
  constexpr size_t kStride = kStripChannels + 5;
  std::array<float, kStripChannels> means;
  for (size_t c = 0; c < kStripChannels; ++c) means[c] = 0.3f * static_cast<float>(c) - 5;
  for (const auto& [lanes, channels] :
       {std::pair<size_t, size_t>{64, 32}, {32, 32}, {16, 32}, {4, 32}, {4, 20}, {8, 20}}) {
    for (const DType dtype : kKernelDTypes) {
      SCOPED_TRACE(::testing::Message() << lanes << " lanes " << channels << " channels " << DTypeName(dtype));
      CodedStrip coded(300, channels, lanes, true, true, true);
      const std::vector<uint8_t> bytes = coded.Encode();
      ChannelRansDecoder decoder, defined;
      ASSERT_TRUE(decoder.Begin(lanes, bytes.data(), bytes.size()));
      ASSERT_TRUE(defined.Begin(lanes, bytes.data(), bytes.size()));
      StripStates own = {}, of_definition = {};
      KnownEscapes escapes = coded.Escapes(), again = escapes;
      std::vector<int32_t> points(coded.k.size());
      ASSERT_TRUE(
          scalar::DecodeStrip(coded.strip, coded.tokens, channels, &of_definition, defined, again, points.data()));
      std::vector<uint8_t> want(((coded.tokens - 1) * kStride + channels) * DTypeSize(dtype), 0x2a);
      Guarded got(want.size(), Guarded::Against::kPageAfter);
      std::ranges::copy(want, got.data());
      scalar::PlaceStrip(points.data(), coded.tokens, channels, {{dtype, want.data(), kStride}, 0.7f, means.data()});
      ASSERT_TRUE(DecodeStrip(coded.strip, coded.tokens, channels, &own, decoder, escapes,
                              {{dtype, got.data(), kStride}, 0.7f, means.data()}));
      EXPECT_TRUE(std::ranges::equal(want, std::span(got.data(), got.size())));
    }
  }
}

// Of values that are all alike, which take next to no bits.
TEST_P(ChannelRansTest, ManyTokensOfFewWords) {
  for (const size_t lanes : {1, 4, 16, 32, 64}) {
    for (const size_t odd_ones : {0, 1, 5, 40}) {
      SCOPED_TRACE(::testing::Message() << lanes << " lanes, " << odd_ones << " odd values");
      CodedStrip coded(2000, kStripChannels, lanes, true, false);
      coded.strip.index = {};
      std::ranges::fill(coded.k, 0);
      for (size_t i = 0; i < odd_ones; ++i) coded.k[i * 1601 + 7] = 1;
      MakeSymbols(coded.strip, coded.k, kStripChannels, true, coded.symbols, coded.escapes);
      const std::vector<uint8_t> bytes = coded.Encode();
      ASSERT_EQ(bytes, coded.EncodeByDefinition());
      for (size_t missing = 0; missing + 4 * lanes <= bytes.size() && missing < 100; missing += 2) {
        const Guarded in(bytes.data() + missing, bytes.size() - missing, Guarded::Against::kPageBefore);
        ChannelRansDecoder decoder, defined;
        ASSERT_TRUE(decoder.Begin(lanes, in.data(), in.size()));
        ASSERT_TRUE(defined.Begin(lanes, in.data(), in.size()));
        Points points(coded.k.size());
        std::vector<int32_t> expected(coded.k.size());
        KnownEscapes escapes = coded.Escapes(), again = coded.Escapes();
        escapes.beyond.resize(2 * coded.k.size(), 1);
        again.beyond = escapes.beyond;
        StripStates own = {}, of_definition = {};
        const bool ok =
            DecodeStrip(coded.strip, coded.tokens, kStripChannels, &own, decoder, escapes, points.placing());
        ASSERT_EQ(ok, scalar::DecodeStrip(coded.strip, coded.tokens, kStripChannels, &of_definition, defined, again,
                                          expected.data()));
        if (!ok) continue;
        ASSERT_TRUE(points == expected);
        ASSERT_EQ(own, of_definition);
        ASSERT_EQ(decoder.size, defined.size);
        ASSERT_EQ(decoder.states, defined.states);
        ASSERT_EQ(decoder.Finish(), missing == 0);
      }
    }
  }
}

// With low bits or without, and numbers of lanes that there are bodies for.
struct Run {
  bool with_low_bits;
  size_t lanes;
};
constexpr Run kRuns[] = {{false, 1},
                         {true, 1},
                         {false, 2},
                         {true, 2},
                         {false, 4},
                         {true, 4},
                         {false, 8},
                         {true, 8},
                         {false, 16},
                         {true, 16},
                         {false, kStripChannels},
                         {true, kStripChannels},
                         {false, kMaxChannelLanes},
                         {true, kMaxChannelLanes}};

TEST_P(ChannelRansTest, EscapesThatNoEncoderHasAreNoticed) {
  for (const auto& [with_low_bits, lanes] : kRuns) {
    CodedStrip coded(300, kStripChannels, lanes, true, true, with_low_bits);
    const std::vector<uint8_t> bytes = coded.Encode();
    const KnownEscapes known = coded.Escapes();
    for (const int32_t wrong : {kMaxPoint, -kMaxPoint, 1 << 29}) {
      for (const size_t at : {size_t{0}, known.beyond.size() / 2, known.beyond.size() - 1}) {
        KnownEscapes escapes = known;
        escapes.beyond[at] = wrong;
        ChannelRansDecoder decoder;
        ASSERT_TRUE(decoder.Begin(lanes, bytes.data(), bytes.size()));
        StripStates states = {};
        Points points(coded.k.size());
        EXPECT_FALSE(
            DecodeStrip(coded.strip, coded.tokens, kStripChannels, &states, decoder, escapes, points.placing()));
        EXPECT_EQ(escapes.read, at + 1);
      }
    }
  }
}

TEST_P(ChannelRansTest, WordsThatEndEarlyAreNoticed) {
  for (const auto& [with_low_bits, lanes] : kRuns) {
    CodedStrip coded(300, kStripChannels, lanes, true, false, with_low_bits);
    const std::vector<uint8_t> bytes = coded.Encode();
    for (size_t missing = 2; missing + 4 * lanes <= bytes.size(); missing += 98) {
      // The first words are the last ones that are read.
      const Guarded in(bytes.data() + missing, bytes.size() - missing, Guarded::Against::kPageBefore);
      ChannelRansDecoder decoder;
      ASSERT_TRUE(decoder.Begin(lanes, in.data(), in.size()));
      StripStates states = {};
      Points points(coded.k.size());
      KnownEscapes escapes = coded.Escapes();
      escapes.beyond.resize(coded.k.size(), 1);  // what is read without its first words may be anything
      const bool ok =
          DecodeStrip(coded.strip, coded.tokens, kStripChannels, &states, decoder, escapes, points.placing());
      EXPECT_FALSE(ok && decoder.Finish());
    }
  }
}

TEST_P(ChannelRansTest, WithoutRoomNothingIsWrittenBeyondIt) {
  for (const auto& [with_low_bits, lanes] : kRuns) {
    CodedStrip coded(100, kStripChannels, lanes, true, false, with_low_bits);
    const size_t needed = coded.Encode().size();
    for (size_t room = 0; room < needed + 200; room += 7) {
      Guarded out(room, Guarded::Against::kPageAfter);
      ChannelRansEncoder encoder(lanes, out.data(), room);
      const bool fits =
          EncodeStrip(coded.strip, coded.symbols.data(), coded.k.data(), coded.tokens, kStripChannels, encoder);
      const size_t size = fits ? encoder.Finish() : 0;
      if (room < needed) {
        EXPECT_EQ(size, 0);
      }
      if (room >= needed + MaxTokenBytes(coded.strip)) {
        EXPECT_EQ(size, needed);
      }
    }
  }
}

}  // namespace
}  // namespace kvcompress::simd
