#include "core/simd/token_meter.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "core/base/half.h"
#include "core/simd/group_quant.h"
#include "tests/core/simd/token_bits.h"
#include "tests/core/simd/with_target.h"
#include "tests/testing/token_figures.h"
#include "tests/testing/values.h"

namespace kvcompress::simd {
namespace {

using ::kvcompress::testing::Distribution;
using ::kvcompress::testing::KeyLikeValues;
using ::kvcompress::testing::SameBits;
using ::kvcompress::testing::TokenFigures;
using ::kvcompress::testing::UsableTargets;
using ::kvcompress::testing::WithTarget;

using Values = std::vector<std::byte>;

constexpr float kInfiniteValue = std::numeric_limits<float>::infinity();

// A relative error of this is a thousandth of the 0.01 dB that figures may be off.
constexpr double kFigureError = 2.3e-6;

void ExpectFigures(const ErrorSums& got, const ErrorSums& want, double relative = kFigureError) {
  EXPECT_EQ(got.token_count, want.token_count);
  if (std::isfinite(want.token_error_deviations)) {
    EXPECT_NEAR(got.token_error_deviations, want.token_error_deviations, relative * want.token_error_deviations);
  } else {
    EXPECT_EQ(got.token_error_deviations, want.token_error_deviations);
  }
  EXPECT_NEAR(got.token_deviations, want.token_deviations, relative * want.token_deviations);
  EXPECT_NEAR(got.max_channel_constant, want.max_channel_constant, relative * want.max_channel_constant);
}

// Measures the values in runs of `run`.
ErrorSums MeasureInRuns(const TokenLayout& layout, DType dtype, const Values& x, const Values& y, size_t run) {
  TokenMeter meter;
  TokenSums sums;
  TokenTotals totals;
  totals.Begin(layout);
  const size_t count = x.size() / DTypeSize(dtype);
  for (size_t at = 0; at < count; at += run) {
    const size_t n = std::min(run, count - at);
    meter.Begin(layout, at);
    MeasureTokens(dtype, x.data() + at * DTypeSize(dtype), y.data() + at * DTypeSize(dtype), n, meter);
    meter.Take(sums);
    totals.Merge(sums);
  }
  ErrorSums result;
  totals.AddTo(result);
  return result;
}

// `x`, each value rounded to a multiple of `step`.
Values RoundedTo(DType dtype, const Values& x, float step) {
  Values y(x.size());
  for (size_t i = 0; i < x.size() / DTypeSize(dtype); ++i) {
    StoreFromF32(dtype, std::round(LoadAsF32(dtype, x.data(), i) / step) * step, y.data(), i);
  }
  return y;
}

TEST(TokenLayoutTest, IsReadFromTheAxes) {
  using enum AxisRole;
  const auto layout = [](std::vector<uint64_t> shape, std::vector<AxisRole> axes) {
    return TokenLayoutOf({.name = "t", .dtype = DType::kF16, .shape = std::move(shape), .axes = std::move(axes)});
  };
  const TokenLayout heads_first = layout({2, 8, 100, 128}, {kBatch, kHeads, kSeq, kHeadDim});
  EXPECT_EQ(heads_first.tokens, 100u);
  EXPECT_EQ(heads_first.channels, 128u);
  const TokenLayout tokens_first = layout({2, 100, 8, 128}, {kBatch, kSeq, kHeads, kHeadDim});
  EXPECT_EQ(tokens_first.tokens, 100u);
  EXPECT_EQ(tokens_first.channels, 1024u);
  const TokenLayout tokens_last = layout({2, 8, 128, 100}, {kBatch, kHeads, kHeadDim, kSeq});
  EXPECT_EQ(tokens_last.tokens, 100u);
  EXPECT_EQ(tokens_last.channels, 1u);
  EXPECT_TRUE(layout({4, TokenLayout::kMaxChannels}, {kSeq, kHeadDim}).has_tokens());
  EXPECT_FALSE(layout({4, TokenLayout::kMaxChannels + 1}, {kSeq, kHeadDim}).has_tokens());
  EXPECT_FALSE(layout({4, 4, 4}, {kSeq, kSeq, kHeadDim}).has_tokens());
  EXPECT_FALSE(layout({4, 4}, {kSeq, kHeads}).has_tokens());
  EXPECT_FALSE(layout({4, 4}, {kOther, kHeadDim}).has_tokens());
  EXPECT_FALSE(layout({0, 4}, {kSeq, kHeadDim}).has_tokens());
  EXPECT_FALSE(layout({4, 0}, {kSeq, kHeadDim}).has_tokens());
  EXPECT_FALSE(layout({}, {}).has_tokens());
}

TEST(TokenMeterTest, FiguresAreThoseOfTheDefinitionForEveryLayoutAndCutIntoRuns) {
  struct Shape {
    uint64_t sequences, tokens, channels;
  };
  for (const Shape shape : {Shape{1, 1, 1},
                            {1, 1, 128},
                            {3, 1, 64},
                            {1, 2, 5},
                            {2, 300, 1},
                            {3, 1000, 1},
                            {2, 77, 3},
                            {5, 16, 80},
                            {2, 513, 80},
                            {1, 700, 128},
                            {4, 129, 64},
                            {2, 9, 1024},
                            {3, 5, 2000}}) {
    const TokenLayout layout{.tokens = shape.tokens, .channels = shape.channels};
    const auto count = static_cast<size_t>(shape.sequences * layout.sequence());
    for (const DType dtype : kKernelDTypes) {
      const Values x = KeyLikeValues(dtype, count, static_cast<size_t>(shape.channels), 30, 1, 5);
      const Values y = RoundedTo(dtype, x, 0.75f);
      const ErrorSums want = TokenFigures(layout, dtype, x, y);
      for (const size_t run : {count, size_t{1}, size_t{7}, size_t{64}, size_t{100}, size_t{1024}, size_t{5000}}) {
        SCOPED_TRACE(::testing::Message() << shape.sequences << " x " << shape.tokens << " x " << shape.channels << ' '
                                          << DTypeName(dtype) << " in runs of " << run);
        ExpectFigures(MeasureInRuns(layout, dtype, x, y, run), want);
        if (HasFailure()) return;
      }
    }
  }
}

// The sums of a run do not depend on how it came.
TEST(TokenMeterTest, CallsOfAnySizeGiveTheSameBits) {
  std::mt19937 random(3);
  for (const uint64_t channels : {1, 3, 64, 80, 128, 1000}) {
    const TokenLayout layout{.tokens = 333, .channels = channels};
    const size_t count = static_cast<size_t>(layout.sequence() * 2 + layout.sequence() / 3);
    std::vector<float> x(count), e(count);
    for (size_t i = 0; i < count; ++i) {
      x[i] = testing::Bell(random) + static_cast<float>(i % channels);
      e[i] = testing::Bell(random) * 0.1f;
    }
    const auto measure = [&](auto next) {
      TokenMeter meter;
      meter.Begin(layout, 777);
      for (size_t at = 0; at < count;) {
        const size_t n = std::min<size_t>(next(), count - at);
        meter.Add(DType::kF32, x.data() + at, e.data() + at, n);
        at += n;
      }
      EXPECT_TRUE(meter.End());
      TokenSums sums;
      meter.Take(sums);
      return sums;
    };
    const TokenSums whole = measure([&] { return count; });
    for (const size_t most : {size_t{1}, size_t{50}, size_t{2048}}) {
      const TokenSums cut = measure([&] { return 1 + random() % most; });
      EXPECT_TRUE(SameBits(cut, whole));
    }
  }
}

TEST(TokenMeterTest, WhatItMeasuredBeforeLeavesNothing) {
  std::mt19937 random(3);
  std::vector<float> x(360), e(360), large(5 * 80, 1e10f);
  for (float& v : x) v = testing::Bell(random);
  for (float& v : e) v = testing::Bell(random) * 0.1f;
  const auto measure = [&](TokenMeter& meter) {
    meter.Begin({.tokens = 5, .channels = 72}, 0);
    meter.Add(DType::kF32, x.data(), e.data(), x.size());
    EXPECT_TRUE(meter.End());
    return meter.sums();
  };
  TokenMeter fresh, used;
  used.Begin({.tokens = 5, .channels = 80}, 0);
  used.Add(DType::kF32, large.data(), large.data(), large.size());
  (void)used.End();
  EXPECT_TRUE(SameBits(measure(used), measure(fresh)));
}

TEST(TokenMeterTest, ConstantsOfChannelsTakeNoDigits) {
  const TokenLayout layout{.tokens = 3000, .channels = 64};
  struct Case {
    DType dtype;
    float constant, deviation;
  };
  for (const Case& one : {Case{DType::kF16, 350, 1},
                          {DType::kBF16, 350, 1},
                          {DType::kF16, 60000, 60},
                          {DType::kF32, 1e4f, 1},
                          {DType::kF32, 1e6f, 1},
                          {DType::kF32, 1e-3f, 1e-7f}}) {
    const Values x = KeyLikeValues(one.dtype, 2 * 3000 * 64, 64, one.constant, one.deviation);
    for (const float step : {one.constant / 7, one.constant / 127, one.deviation / 3}) {
      SCOPED_TRACE(::testing::Message() << DTypeName(one.dtype) << ' ' << one.constant << ' ' << step);
      const Values y = RoundedTo(one.dtype, x, step);
      ExpectFigures(MeasureInRuns(layout, one.dtype, x, y, 1 << 17), TokenFigures(layout, one.dtype, x, y), 1e-4);
    }
  }
}

// A first token that lies far from all others, about which the sums of its chunk are made.
TEST(TokenMeterTest, SinksTakeNoDigits) {
  const TokenLayout layout{.tokens = 1000, .channels = 64};
  const size_t sequence = 1000 * 64;
  for (const DType dtype : kKernelDTypes) {
    for (const float factor : {30.0f, 1000.0f}) {
      Values x = KeyLikeValues(dtype, 2 * sequence, 64, 10);
      for (const size_t begin : {size_t{0}, sequence}) {
        for (size_t i = begin; i < begin + 64; ++i) {
          StoreFromF32(dtype, LoadAsF32(dtype, x.data(), i) * factor, x.data(), i);
        }
      }
      const Values y = RoundedTo(dtype, x, 0.75f);
      for (const size_t run : {2 * sequence, size_t{5000}}) {
        SCOPED_TRACE(::testing::Message() << DTypeName(dtype) << ' ' << factor << " in runs of " << run);
        ExpectFigures(MeasureInRuns(layout, dtype, x, y, run), TokenFigures(layout, dtype, x, y), 1e-5);
      }
    }
  }
}

// Squares that no binary32 number holds, at either end.
TEST(TokenMeterTest, MagnitudesOfEveryKindAreMeasured) {
  const TokenLayout layout{.tokens = 500, .channels = 64};
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    for (const float factor : {1e-38f, 1e-30f, 1e-20f, 1e-8f, 1e8f, 1e18f, 1e25f, 1e37f}) {
      SCOPED_TRACE(::testing::Message() << DTypeName(dtype) << ' ' << factor);
      Values x = KeyLikeValues(dtype, 2 * 500 * 64, 64, 3);
      for (size_t i = 0; i < 2 * 500 * 64; ++i) {
        StoreFromF32(dtype, LoadAsF32(dtype, x.data(), i) * factor, x.data(), i);
      }
      const Values y = RoundedTo(dtype, x, factor / 4);
      ExpectFigures(MeasureInRuns(layout, dtype, x, y, 10'000), TokenFigures(layout, dtype, x, y), 1e-4);
    }
  }
}

// What varies, or what decoding loses, is subnormal in binary32, beside other numbers.
TEST(TokenMeterTest, SubnormalDeviationsAndErrorsAreMeasured) {
  const TokenLayout layout{.tokens = 500, .channels = 64};
  const size_t count = 2 * 500 * 64;
  for (const int64_t target : UsableTargets()) {
    const WithTarget with(target);
    for (const DType dtype : {DType::kBF16, DType::kF32}) {
      for (const float factor : {0.0f, 1.0f, 1e-30f}) {
        SCOPED_TRACE(::testing::Message() << TargetName() << ' ' << DTypeName(dtype) << ' ' << factor);
        const Values numbers = KeyLikeValues(dtype, count, 64, 3);
        Values x(numbers.size()), y(numbers.size());
        for (size_t i = 0; i < count; ++i) {
          const float number = LoadAsF32(dtype, numbers.data(), i);
          StoreFromF32(dtype, i % 2 == 0 ? number * factor : number * 1e-39f, x.data(), i);
          StoreFromF32(dtype, i % 2 == 0 ? number * factor : 0, y.data(), i);
        }
        const ErrorSums want = TokenFigures(layout, dtype, x, y);
        for (const Values& decoded : {y, x}) {
          const ErrorSums got = MeasureInRuns(layout, dtype, x, decoded, 10'000);
          EXPECT_NEAR(got.token_deviations, want.token_deviations, 1e-4 * want.token_deviations);
          const double errors = decoded == x ? 0 : want.token_error_deviations;
          EXPECT_NEAR(got.token_error_deviations, errors, 1e-4 * errors);
        }
      }
    }
  }
}

// Beside values whose squares binary32 does not hold.
TEST(TokenMeterTest, ATinyValueThatIsDecodedToNaNIsAnInfiniteError) {
  const TokenLayout layout{.tokens = 8, .channels = 64};
  const size_t count = 8 * 64;
  for (const int64_t target : UsableTargets()) {
    const WithTarget with(target);
    for (const DType dtype : {DType::kBF16, DType::kF32}) {
      SCOPED_TRACE(::testing::Message() << TargetName() << ' ' << DTypeName(dtype));
      const Values numbers = KeyLikeValues(dtype, count, 64, 3);
      Values x(numbers.size()), y(numbers.size());
      for (size_t i = 0; i < count; ++i) {
        const float number = LoadAsF32(dtype, numbers.data(), i) * 0x1p-100f;
        StoreFromF32(dtype, number, x.data(), i);
        StoreFromF32(dtype, 1.05f * number, y.data(), i);
      }
      StoreFromF32(dtype, std::numeric_limits<float>::quiet_NaN(), y.data(), 100);
      TokenMeter meter;
      meter.Begin(layout, 0);
      MeasureTokens(dtype, x.data(), y.data(), count, meter);
      EXPECT_EQ(meter.sums().max_abs_error, kInfiniteValue);
    }
  }
}

TEST(TokenMeterTest, ValuesThatAreNotFiniteAreLeftOut) {
  const TokenLayout layout{.tokens = 100, .channels = 64};
  const size_t count = 3 * 100 * 64;
  for (const DType dtype : kKernelDTypes) {
    for (const float odd : {kInfiniteValue, -kInfiniteValue, std::numeric_limits<float>::quiet_NaN()}) {
      // Alone in its channel's part of a run, too.
      for (const size_t at : {size_t{0}, size_t{1000}, count - 1}) {
        Values x = KeyLikeValues(dtype, count, 64, 10);
        StoreFromF32(dtype, odd, x.data(), at);
        Values y = RoundedTo(dtype, x, 0.5f);
        StoreFromF32(dtype, odd, y.data(), at);
        for (const size_t run : {count, size_t{777}, size_t{1}}) {
          ExpectFigures(MeasureInRuns(layout, dtype, x, y, run), TokenFigures(layout, dtype, x, y), 1e-4);
        }
        StoreFromF32(dtype, 1, x.data(), at);  // what decodes to such a value has an infinite error
        const ErrorSums lost = MeasureInRuns(layout, dtype, x, y, 777);
        EXPECT_EQ(lost.token_error_deviations, kInfiniteValue);
        EXPECT_NEAR(lost.token_deviations, TokenFigures(layout, dtype, x, x).token_deviations,
                    1e-4 * lost.token_deviations);
      }
    }
  }
}

TEST(TokenMeterTest, WhatDoesNotVaryHasNoDeviation) {
  const TokenLayout layout{.tokens = 200, .channels = 64};
  for (const DType dtype : kKernelDTypes) {
    Values x(2 * 200 * 64 * DTypeSize(dtype));
    for (size_t i = 0; i < 2 * 200 * 64; ++i) StoreFromF32(dtype, static_cast<float>(i % 64), x.data(), i);
    for (const Values& y : {x, RoundedTo(dtype, x, 0.75f)}) {
      const ErrorSums sums = MeasureInRuns(layout, dtype, x, y, 5000);
      EXPECT_EQ(sums.token_count, 2u * 200 * 64);
      EXPECT_EQ(sums.token_deviations, 0);
      EXPECT_EQ(sums.token_error_deviations, 0);
      EXPECT_EQ(sums.max_channel_constant, 0);
    }
  }
}

// Values and errors that one channel has once.
TEST(TokenMeterTest, OneTokenHasNoDeviation) {
  const TokenLayout layout{.tokens = 1, .channels = 128};
  const Values x = testing::MakeValues(DType::kF16, 10 * 128, Distribution::kGaussian);
  const ErrorSums sums = MeasureInRuns(layout, DType::kF16, x, RoundedTo(DType::kF16, x, 1), 1000);
  EXPECT_EQ(sums.token_count, 1280u);
  EXPECT_EQ(sums.token_deviations, 0);
  EXPECT_EQ(sums.token_error_deviations, 0);
}

struct MeasuredCodes {
  Values decoded;
  TokenSums tokens;
};

MeasuredCodes QuantizeMeasured(const GroupQuantFormat& format, const TokenLayout& layout, uint64_t first,
                               const Values& x) {
  const size_t count = x.size() / DTypeSize(format.dtype);
  Values scales(2 * GroupCount(format.group, count)), codes(PackedBytes(format.bits, format.group, count));
  TokenMeter meter;
  meter.Begin(layout, first);
  ErrorSums sums;
  const ValueRun run{x.data(), count};
  EXPECT_TRUE(QuantizeRuns(format, {&run, 1}, scales.data(), codes.data(), &sums, &meter));
  MeasuredCodes result;
  meter.Take(result.tokens);
  result.decoded.resize(x.size());
  Dequantize(format, scales.data(), codes.data(), count, result.decoded.data());
  return result;
}

// What is measured while values are quantized is what their decoded values measure, on every instruction set, and the
// same on all of them but for the last digits.
TEST(TokenMeterTest, QuantizersMeasureWhatTheyDecodeTo) {
  for (const DType dtype : kKernelDTypes) {
    for (const int bits : {2, 3, 4, 5, 6, 8}) {
      for (const size_t group : {32, 64, 128}) {
        for (const Distribution distribution : testing::kAllDistributions) {
          const TokenLayout layout{.tokens = 37, .channels = 80};
          const size_t count = 80 * 100 + 13;
          const Values x = testing::MakeValues(dtype, count, distribution, 9);
          const GroupQuantFormat format{dtype, bits, group};
          SCOPED_TRACE(::testing::Message()
                       << DTypeName(dtype) << " int" << bits << " g" << group << ' ' << static_cast<int>(distribution));
          const MeasuredCodes first = QuantizeMeasured(format, layout, 1234, x);
          TokenMeter meter;
          TokenSums measured;
          meter.Begin(layout, 1234);
          MeasureTokens(dtype, x.data(), first.decoded.data(), count, meter);
          meter.Take(measured);
          EXPECT_TRUE(SameBits(measured, first.tokens));
          for (const int64_t target : UsableTargets()) {
            const WithTarget with(target);
            const TokenSums own = QuantizeMeasured(format, layout, 1234, x).tokens;
            ExpectFigures(own.closed, first.tokens.closed, 1e-5);
            meter.Begin(layout, 1234);
            MeasureTokens(dtype, x.data(), first.decoded.data(), count, meter);
            meter.Take(measured);
            EXPECT_TRUE(SameBits(measured, own)) << TargetName();
          }
          if (HasFailure()) return;
        }
      }
    }
  }
}

// The codec `bounded` chooses by them.
TEST(TokenMeterTest, ValuesWithoutErrorsMeasureTheSameBitsOnEveryInstructionSet) {
  const TokenLayout layout{.tokens = 137, .channels = 80};
  const size_t count = 80 * 300 + 13;
  for (const DType dtype : kKernelDTypes) {
    for (const float factor : {1.0f, 0x1p-40f, 0x1p-70f, 0x1p-126f, 0x1p60f}) {
      Values x = KeyLikeValues(dtype, count, 80, 30);
      for (size_t i = 0; i < count; ++i) StoreFromF32(dtype, LoadAsF32(dtype, x.data(), i) * factor, x.data(), i);
      const auto measure = [&] {
        TokenMeter meter;
        TokenSums sums;
        meter.Begin(layout, 1234);
        MeasureTokens(dtype, x.data(), x.data(), count, meter);
        meter.Take(sums);
        return sums;
      };
      const TokenSums first = measure();
      for (const int64_t target : UsableTargets()) {
        const WithTarget with(target);
        EXPECT_TRUE(SameBits(measure(), first)) << DTypeName(dtype) << ' ' << factor << ' ' << TargetName();
      }
    }
  }
}

TEST(TokenMeterTest, SumsBesideTokensAreThoseOfTheDefinition) {
  const TokenLayout layout{.tokens = 150, .channels = 64};
  const size_t count = 2 * 150 * 64 - 7;
  for (const int64_t target : UsableTargets()) {
    const WithTarget with(target);
    for (const DType dtype : kKernelDTypes) {
      for (const float factor : {1e-38f, 1e-30f, 1e-20f, 1e-8f, 1.0f, 1e8f, 1e18f, 1e25f, 1e36f}) {
        for (const bool has_nan : {false, true}) {
          Values x = KeyLikeValues(dtype, count, 64, 3);
          for (size_t i = 0; i < count; ++i) StoreFromF32(dtype, LoadAsF32(dtype, x.data(), i) * factor, x.data(), i);
          if (has_nan) {
            for (const size_t at : {0, 64, 777}) StoreFromF32(dtype, std::nanf(""), x.data(), at);
          }
          for (const Values& y : {RoundedTo(dtype, x, factor / 4), x}) {
            SCOPED_TRACE(::testing::Message()
                         << TargetName() << ' ' << DTypeName(dtype) << ' ' << factor << (has_nan ? " with NaN" : ""));
            ErrorSums want;
            scalar::MeasureErrors(dtype, x.data(), y.data(), count, want);
            TokenMeter meter;
            meter.Begin(layout, 1000);
            MeasureTokens(dtype, x.data(), y == x ? x.data() : y.data(), count, meter);
            const ErrorSums& got = meter.sums();
            constexpr double kRelative = 1e-5;
            const auto n = static_cast<double>(want.count);
            EXPECT_EQ(got.count, want.count);
            EXPECT_NEAR(got.sum, want.sum, kRelative * std::sqrt(n * want.sum_squares));
            EXPECT_NEAR(got.sum_squares, want.sum_squares, kRelative * want.sum_squares);
            EXPECT_NEAR(got.sum_deviations, want.sum_deviations, 1e-4 * want.sum_deviations);
            EXPECT_NEAR(got.sum_error_squares, want.sum_error_squares, kRelative * want.sum_error_squares);
            EXPECT_NEAR(got.sum_abs_error, want.sum_abs_error, kRelative * want.sum_abs_error);
            EXPECT_NEAR(got.sum_cross, want.sum_cross,
                        kRelative * std::sqrt(want.sum_squares * want.sum_error_squares));
            EXPECT_NEAR(got.max_abs_error, want.max_abs_error, kRelative * want.max_abs_error);
            if (HasFailure()) return;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace kvcompress::simd
