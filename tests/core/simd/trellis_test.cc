#include "core/simd/trellis.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "tests/core/simd/gaussian.h"
#include "tests/core/simd/strip_tables.h"
#include "tests/core/simd/with_target.h"

namespace kvcompress::simd {
namespace {

using ::kvcompress::testing::GaussianValues;
using ::kvcompress::testing::SomeTables;
using ::kvcompress::testing::StripOf;
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

constexpr std::array<float, kStripChannels> kNoMeans = {};

StripSpan Whole(const std::vector<float>& y, size_t tokens) {
  return {.values = y.data(), .stride = kStripChannels, .tokens = tokens, .means = kNoMeans.data(), .factor = 1};
}

// The values of all tokens, by the definition.
std::vector<int32_t> Quantized(const std::vector<float>& y, size_t tokens) {
  const std::vector<ChannelTable> tables = SomeTables();
  const StripTables strip{.all = tables.data(), .has_low_bits = true};  // then all values are kept
  std::vector<TrellisDecisions> decisions(tokens);
  std::vector<uint8_t> symbols(y.size());
  std::vector<uint32_t> escapes(tokens);
  std::vector<int32_t> k(y.size());
  TrellisCosts costs;
  scalar::TrellisForward(Whole(y, tokens), costs, decisions.data());
  TrellisEnds ends = scalar::CheapestEnds(costs);
  scalar::TrellisBack(strip, Whole(y, tokens), decisions.data(), ends, {symbols.data(), escapes.data(), k.data()});
  EXPECT_EQ(ends.high, 0);
  EXPECT_EQ(ends.low, 0);
  return k;
}

// All paths of a few tokens: none has less error.
TEST(TrellisDefinition, FindsTheNearestPath) {
  constexpr size_t kTokens = 5;
  for (uint32_t seed = 0; seed < 40; ++seed) {
    const std::vector<float> y = GaussianValues(kTokens * kStripChannels, 1.5f, seed);
    const std::vector<int32_t> k = Quantized(y, kTokens);
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
  const std::vector<int32_t> k = Quantized(y, kTokens);
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

// What is made of a strip of some spans.
struct Coded {
  std::vector<uint8_t> symbols;
  std::vector<uint32_t> escapes;
  std::vector<int32_t> k;
  std::vector<float> values;  // of F32 they are decoded in place
  std::vector<uint8_t> placed;

  Coded(size_t tokens, const std::vector<float>& from, size_t placed_bytes)
      : symbols(tokens * kStripChannels, 99),
        escapes(tokens, 1u << 31),
        k(tokens * kStripChannels, 12345),
        values(from),
        placed(placed_bytes, 0x2a) {}

  bool operator==(const Coded&) const = default;
};

struct Kernels {
  decltype(&PlainSymbols) plain;
  decltype(&TrellisForward) forward;
  decltype(&CheapestEnds) ends;
  decltype(&TrellisBack) back;
};
constexpr Kernels kDefinition{scalar::PlainSymbols, scalar::TrellisForward, scalar::CheapestEnds, scalar::TrellisBack};
constexpr Kernels kFast{PlainSymbols, TrellisForward, CheapestEnds, TrellisBack};

// Where in their rows a strip's values lie, and how they are quantized and placed.
struct Case {
  bool trellis;
  bool has_low_bits;
  float unit;  // 0: nowhere
  DType dtype;
};
constexpr size_t kStride = 70, kFirst = 35;

Coded Code(const Kernels& kernels, const Case& how, const std::vector<float>& values,
           const std::vector<size_t>& span_tokens) {
  const std::vector<ChannelTable> tables = SomeTables();
  const StripTables coding = StripOf(tables, how.has_low_bits);
  const std::vector<float> means = GaussianValues(2 * kStripChannels, 2, 9);
  const size_t tokens = values.size() / kStride;
  Coded out(tokens, values, how.dtype == DType::kF32 ? 0 : values.size() * DTypeSize(how.dtype));
  void* const to = how.dtype == DType::kF32 ? static_cast<void*>(out.values.data() + kFirst) : out.placed.data();
  const PlacedValues placed{how.dtype, to, kStride};
  std::vector<StripSpan> spans;
  std::vector<size_t> begins;
  for (size_t begin = 0; const size_t count : span_tokens) {
    const auto factor = static_cast<float>(1 << spans.size() % 4);
    spans.push_back({out.values.data() + begin * kStride + kFirst,
                     kStride,
                     count,
                     means.data(),
                     factor,
                     {placed.After(begin), how.unit / factor, means.data() + kStripChannels}});
    begins.push_back(begin);
    begin += count;
  }
  const auto to_span = [&](size_t i) {
    const size_t at = begins[i] * kStripChannels;
    return CodedSymbols{out.symbols.data() + at, out.escapes.data() + begins[i], out.k.data() + at};
  };
  if (!how.trellis) {
    for (size_t i = 0; i < spans.size(); ++i) kernels.plain(coding, spans[i], to_span(i));
    return out;
  }
  std::vector<TrellisDecisions> decisions(tokens);
  TrellisCosts costs;
  for (size_t i = 0; i < spans.size(); ++i) kernels.forward(spans[i], costs, decisions.data() + begins[i]);
  TrellisEnds ends = kernels.ends(costs);
  for (size_t i = spans.size(); i-- > 0;) {
    kernels.back(coding, spans[i], decisions.data() + begins[i], ends, to_span(i));
  }
  EXPECT_EQ(ends.high, 0);
  EXPECT_EQ(ends.low, 0);
  return out;
}

class TrellisTest : public ::testing::TestWithParam<int64_t> {
 private:
  const WithTarget with_{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(All, TrellisTest, ::testing::ValuesIn(UsableTargets()),
                         [](const auto& param) { return std::string(hwy::TargetName(param.param)); });

// Values that are kept are those of tokens with escapes, of which a kernel may keep less than the definition does.
void ForgetValuesWithoutEscapes(const Coded& want, Coded& got) {
  for (size_t i = 0; i < got.k.size(); ++i) {
    const bool is_escape = (want.escapes[i / kStripChannels] >> (i % kStripChannels) & 1) != 0;
    if (!is_escape) got.k[i] = want.k[i];
  }
}

TEST_P(TrellisTest, CodesAsTheDefinition) {
  for (const std::vector<size_t>& spans :
       {std::vector<size_t>{1}, {2}, {3}, {16}, {129}, {300}, {1, 1, 1, 1, 96}, {40, 1, 7, 100}}) {
    size_t tokens = 0;
    for (const size_t count : spans) tokens += count;
    for (const float deviation : {0.1f, 0.7f, 2.0f, 30.0f, 1e5f}) {
      const std::vector<float> values = GaussianValues(tokens * kStride, deviation, 7);
      for (const bool trellis : {false, true}) {
        for (const bool has_low_bits : {false, true}) {
          for (const auto& [unit, dtype] : {std::pair{0.0f, DType::kF32}, std::pair{0.3f, DType::kF32},
                                            std::pair{0.3f, DType::kF16}, std::pair{1e5f, DType::kBF16}}) {
            SCOPED_TRACE(::testing::Message() << tokens << " " << spans.size() << " " << deviation << trellis
                                              << has_low_bits << DTypeName(dtype) << unit);
            const Case how{trellis, has_low_bits, unit, dtype};
            const Coded want = Code(kDefinition, how, values, spans);
            Coded got = Code(kFast, how, values, spans);
            if (!has_low_bits) ForgetValuesWithoutEscapes(want, got);
            ASSERT_TRUE(got == want);
            ASSERT_EQ(want.values == values, unit == 0 || dtype != DType::kF32);
          }
        }
      }
    }
  }
}

// Ties of costs, too, are decided as by the definition.
TEST_P(TrellisTest, TiesAreThoseOfTheDefinition) {
  constexpr size_t kTokens = 200;
  const std::vector<float> y = Halves(kTokens, 3);
  std::vector<TrellisDecisions> want(kTokens), got(kTokens);
  TrellisCosts want_costs, got_costs;
  scalar::TrellisForward(Whole(y, kTokens), want_costs, want.data());
  TrellisForward(Whole(y, kTokens), got_costs, got.data());
  EXPECT_EQ(got, want);
  for (size_t s = 0; s < 4; ++s) {
    EXPECT_TRUE(std::ranges::equal(got_costs.of_state[s], want_costs.of_state[s]));
  }
}

}  // namespace
}  // namespace kvcompress::simd
