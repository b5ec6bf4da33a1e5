#include "core/simd/trellis.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "tests/core/simd/gaussian.h"
#include "tests/core/simd/guarded.h"
#include "tests/core/simd/with_target.h"

namespace kvcompress::simd {
namespace {

using ::kvcompress::testing::GaussianValues;
using ::kvcompress::testing::Guarded;
using ::kvcompress::testing::UsableTargets;
using ::kvcompress::testing::WithTarget;

// Tokens of ties, halves and whole points, of both signs.
std::vector<float> Halves(size_t tokens, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> values(tokens * kStripChannels);
  for (float& value : values) value = static_cast<float>(static_cast<int>(random() % 41) - 20) * 0.5f;
  return values;
}

double Error(const float* y, size_t tokens, const std::vector<int32_t>& k) {
  double sum = 0;
  uint8_t state = 0;
  for (size_t t = 0; t < tokens; ++t) {
    const double point = PointOf(k[t], QuantizerOf(state));
    sum += std::pow(static_cast<double>(y[t * kStripChannels]) - point, 2);
    state = NextState(state, k[t] % 2 != 0);
  }
  return sum;
}

// All paths of a few tokens: none has less error.
TEST(TrellisDefinition, FindsTheNearestPath) {
  constexpr size_t kTokens = 5;
  for (uint32_t seed = 0; seed < 40; ++seed) {
    const std::vector<float> y = GaussianValues(kTokens * kStripChannels, 1.5f, seed);
    std::vector<uint32_t> decisions(4 * kTokens);
    std::vector<int32_t> k(y.size());
    scalar::TrellisQuantize(y.data(), kTokens, decisions.data(), k.data());
    std::vector<int32_t> chosen(kTokens), path(kTokens);
    for (size_t t = 0; t < kTokens; ++t) chosen[t] = k[t * kStripChannels];
    double least = 1e30;
    for (int code = 0; code < 7 * 7 * 7 * 7 * 7; ++code) {
      for (size_t t = 0, left = static_cast<size_t>(code); t < kTokens; ++t, left /= 7) {
        path[t] = static_cast<int32_t>(left % 7) - 3 + static_cast<int32_t>(std::lround(y[t * kStripChannels] / 2));
      }
      least = std::min(least, Error(y.data(), kTokens, path));
    }
    EXPECT_NEAR(Error(y.data(), kTokens, chosen), least, 1e-5) << seed;
  }
}

TEST(TrellisDefinition, ReachesTheLargestPoints) {
  constexpr size_t kTokens = 6;
  std::vector<float> y(kTokens * kStripChannels);
  for (size_t i = 0; i < y.size(); ++i) y[i] = (i % 2 == 0 ? 1.0f : -1.0f) * (0x1p24f - 8 - static_cast<float>(i));
  std::vector<uint32_t> decisions(4 * kTokens);
  std::vector<int32_t> k(y.size());
  scalar::TrellisQuantize(y.data(), kTokens, decisions.data(), k.data());
  for (size_t c = 0; c < kStripChannels; ++c) {
    uint8_t state = 0;
    for (size_t t = 0; t < kTokens; ++t) {
      const int32_t value = k[t * kStripChannels + c];
      const int32_t point = PointOf(value, QuantizerOf(state));
      EXPECT_LE(std::abs(point), kMaxPoint);
      EXPECT_NEAR(static_cast<double>(point), y[t * kStripChannels + c], 2);
      state = NextState(state, value % 2 != 0);
    }
  }
}

class TrellisTest : public ::testing::TestWithParam<int64_t> {
 private:
  const WithTarget with_{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(All, TrellisTest, ::testing::ValuesIn(UsableTargets()),
                         [](const auto& param) { return std::string(hwy::TargetName(param.param)); });

TEST_P(TrellisTest, QuantizesAsTheDefinition) {
  for (const size_t tokens : {1, 2, 3, 16, 129, 300}) {
    for (const float deviation : {0.1f, 0.7f, 2.0f, 30.0f, 1e5f}) {
      for (const bool ties : {false, true}) {
        const std::vector<float> y = ties ? Halves(tokens, 3) : GaussianValues(tokens * kStripChannels, deviation, 7);
        const Guarded in(y.data(), 4 * y.size(), Guarded::Against::kPageAfter);
        std::vector<uint32_t> decisions(4 * tokens);
        std::vector<int32_t> want(y.size());
        Guarded got(4 * y.size(), Guarded::Against::kPageAfter), room(16 * tokens, Guarded::Against::kPageAfter);
        scalar::TrellisQuantize(y.data(), tokens, decisions.data(), want.data());
        TrellisQuantize(reinterpret_cast<const float*>(in.data()), tokens, reinterpret_cast<uint32_t*>(room.data()),
                        reinterpret_cast<int32_t*>(got.data()));
        ASSERT_EQ(std::memcmp(got.data(), want.data(), got.size()), 0) << tokens << " " << deviation << " " << ties;
        scalar::PlainQuantize(y.data(), tokens, want.data());
        PlainQuantize(reinterpret_cast<const float*>(in.data()), tokens, reinterpret_cast<int32_t*>(got.data()));
        ASSERT_EQ(std::memcmp(got.data(), want.data(), got.size()), 0) << tokens << " " << deviation << " " << ties;
      }
    }
  }
}

// A table of these frequencies of k = 0, 1, -1, ..., for either quantizer, of 4095 slots.
ChannelTable TableOf(const std::vector<uint32_t>& first, const std::vector<uint32_t>& second) {
  ChannelTable table = {};
  for (const size_t quantizer : {0, 1}) {
    std::vector<uint32_t> frequencies = quantizer == 0 ? first : second;
    table.reach[quantizer] = static_cast<uint8_t>(frequencies.size() / 2);
    uint32_t slot = 0;
    const auto add = [&](uint8_t symbol, uint32_t frequency) {
      table.symbols[symbol | (quantizer == 1 ? kOddQuantizer : 0)] = frequency | slot << 16;
      for (uint32_t i = 0; i < frequency; ++i) {
        table.slots[quantizer][slot++] = uint32_t{symbol} << 24 | (frequency - 1) << 12 | i;
      }
    };
    for (size_t i = 0; i < frequencies.size(); ++i) add(static_cast<uint8_t>(i), frequencies[i]);
    add(kEscape, 1);
    if (slot != kRansSlots) std::abort();
  }
  return table;
}

std::vector<ChannelTable> SomeTables() {
  std::vector<uint32_t> wide(63, 40);
  wide[0] = 4095 - 62 * 40;
  return {TableOf({4095}, {4093, 1, 1}), TableOf({1095, 1000, 1000, 500, 500}, {2095, 1000, 1000}),
          TableOf(wide, wide)};
}

// Each of them in turn, some channels with as many low bits as there may be.
StripTables StripOf(const std::vector<ChannelTable>& tables, bool has_low_bits) {
  StripTables strip{.all = tables.data(), .has_low_bits = has_low_bits};
  for (size_t c = 0; c < kStripChannels; ++c) {
    strip.index[c] = static_cast<int32_t>(c % tables.size());
    if (has_low_bits && c % 5 < 3) strip.low_bits[c] = static_cast<int32_t>(c * 7 % 18);
  }
  return strip;
}

struct Symbols {
  std::vector<uint8_t> symbols;
  std::vector<uint32_t> escapes;
  std::vector<int32_t> points;
  StripStates states = {};
};

TEST_P(TrellisTest, SymbolsAreThoseOfTheDefinition) {
  const std::vector<ChannelTable> tables = SomeTables();
  for (const bool has_low_bits : {false, true}) {
    const StripTables strip = StripOf(tables, has_low_bits);
    for (const size_t channels : {1, 7, 16, 31, 32}) {
      for (const bool trellis : {false, true}) {
        constexpr size_t kTokens = 200;
        std::mt19937 random(5);
        std::vector<int32_t> k(kTokens * kStripChannels);
        for (int32_t& value : k) value = static_cast<int32_t>(random() % (random() % 9 == 0 ? 300 : 5)) - 2;
        const auto run = [&](auto symbols_of) {
          Symbols out{std::vector<uint8_t>(k.size()), std::vector<uint32_t>(kTokens), std::vector<int32_t>(k.size())};
          symbols_of(strip, k.data(), kTokens, channels, trellis ? &out.states : nullptr, out.symbols.data(),
                     out.escapes.data(), out.points.data());
          return out;
        };
        const Symbols want = run(scalar::StripSymbols);
        const Symbols got = run(StripSymbols);
        ASSERT_EQ(got.escapes, want.escapes);
        for (size_t t = 0; t < kTokens; ++t) {
          const auto begin = static_cast<ptrdiff_t>(t * kStripChannels);
          const auto end = begin + static_cast<ptrdiff_t>(channels);
          ASSERT_TRUE(std::equal(want.symbols.begin() + begin, want.symbols.begin() + end, got.symbols.begin() + begin))
              << t;
          ASSERT_TRUE(std::equal(want.points.begin() + begin, want.points.begin() + end, got.points.begin() + begin))
              << t;
        }
        for (size_t c = 0; c < channels; ++c) ASSERT_EQ(got.states[c], want.states[c]);
      }
    }
  }
}

TEST_P(TrellisTest, PlainSymbolsAreThoseOfTheDefinition) {
  const std::vector<ChannelTable> tables = SomeTables();
  constexpr size_t kTokens = 100, kStride = 70, kFirst = 35;
  const std::vector<float> means = GaussianValues(2 * kStripChannels, 2, 9);
  for (const bool has_low_bits : {false, true}) {
    const StripTables strip = StripOf(tables, has_low_bits);
    // Of F32 they are placed where the values are, of the unit 0 nowhere.
    for (const auto& [unit, dtype] : {std::pair{0.0f, DType::kF32}, std::pair{0.3f, DType::kF32},
                                      std::pair{0.3f, DType::kF16}, std::pair{1e5f, DType::kBF16}}) {
      SCOPED_TRACE(::testing::Message() << DTypeName(dtype) << unit);
      const auto run = [&](auto symbols_of, std::vector<float>& values, std::vector<uint8_t>& placed, Symbols& out) {
        void* const to = dtype == DType::kF32 ? static_cast<void*>(values.data() + kFirst) : placed.data();
        symbols_of(strip,
                   PlainStrip{values.data() + kFirst, kStride, kTokens, means.data(), 4, means.data() + kStripChannels,
                              unit, PlacedValues{dtype, to, kStride}},
                   out.points.data(), out.symbols.data(), out.escapes.data());
      };
      const auto none = [] {
        constexpr size_t kCount = kTokens * kStripChannels;
        return Symbols{std::vector<uint8_t>(kCount), std::vector<uint32_t>(kTokens, 1u << 31),
                       std::vector<int32_t>(kCount)};
      };
      std::vector<float> want_values = GaussianValues(kTokens * kStride, 3, 4), got_values = want_values;
      std::vector<uint8_t> want_placed(2 * kTokens * kStride), got_placed = want_placed;
      Symbols want = none(), got = none();
      run(scalar::PlainSymbols, want_values, want_placed, want);
      run(PlainSymbols, got_values, got_placed, got);
      for (size_t i = 0; i < got.points.size() && !has_low_bits; ++i) {
        const bool is_escape = (want.escapes[i / kStripChannels] >> (i % kStripChannels) & 1) != 0;
        if (!is_escape) got.points[i] = want.points[i];
      }
      EXPECT_EQ(got.symbols, want.symbols);
      EXPECT_EQ(got.escapes, want.escapes);
      EXPECT_EQ(got.points, want.points);
      EXPECT_EQ(got_values, want_values);
      EXPECT_EQ(got_placed, want_placed);
      EXPECT_EQ(want_placed == std::vector<uint8_t>(want_placed.size()), dtype == DType::kF32);
      EXPECT_NE(std::count_if(want.escapes.begin(), want.escapes.end(), [](uint32_t e) { return e != 0; }), 0);
    }
  }
}

// Escapes that are known.
class KnownEscapes final : public EscapeReader {
 public:
  int32_t Next() override { return beyond[read++]; }

  std::vector<int32_t> beyond;
  size_t read = 0;
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
    StripStates states = {};
    scalar::StripSymbols(strip, k.data(), tokens, channels, trellis ? &states : nullptr, symbols.data(), escapes.data(),
                         nullptr);
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

TEST_P(TrellisTest, WordsDecodeToTheirPoints) {
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
          std::vector<int32_t> points(coded.k.size());
          KnownEscapes escapes = coded.Escapes();
          EXPECT_EQ(escapes.beyond.empty(), kind % 2 == 0);
          ASSERT_TRUE(DecodeStrip(coded.strip, coded.tokens, channels, trellis ? &states : nullptr, decoder, escapes,
                                  points.data()));
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

TEST_P(TrellisTest, EscapesThatNoEncoderHasAreNoticed) {
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
        std::vector<int32_t> points(coded.k.size());
        EXPECT_FALSE(DecodeStrip(coded.strip, coded.tokens, kStripChannels, &states, decoder, escapes, points.data()));
        EXPECT_EQ(escapes.read, at + 1);
      }
    }
  }
}

TEST_P(TrellisTest, WordsThatEndEarlyAreNoticed) {
  for (const auto& [with_low_bits, lanes] : kRuns) {
    CodedStrip coded(300, kStripChannels, lanes, true, false, with_low_bits);
    const std::vector<uint8_t> bytes = coded.Encode();
    for (size_t missing = 2; missing + 4 * lanes <= bytes.size(); missing += 98) {
      // The first words are the last ones that are read.
      const Guarded in(bytes.data() + missing, bytes.size() - missing, Guarded::Against::kPageBefore);
      ChannelRansDecoder decoder;
      ASSERT_TRUE(decoder.Begin(lanes, in.data(), in.size()));
      StripStates states = {};
      std::vector<int32_t> points(coded.k.size());
      KnownEscapes escapes = coded.Escapes();
      escapes.beyond.resize(coded.k.size(), 1);  // what is read without its first words may be anything
      const bool ok = DecodeStrip(coded.strip, coded.tokens, kStripChannels, &states, decoder, escapes, points.data());
      EXPECT_FALSE(ok && decoder.Finish());
    }
  }
}

TEST_P(TrellisTest, WithoutRoomNothingIsWrittenBeyondIt) {
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
