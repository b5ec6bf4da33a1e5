// What TokenMeter promises of squares of errors, over errors that take digits from sums made in another way.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/base/half.h"
#include "core/simd/group_quant.h"
#include "core/simd/token_meter.h"
#include "tests/core/simd/with_target.h"
#include "tests/testing/token_figures.h"
#include "tests/testing/values.h"

namespace kvcompress::simd {
namespace {

using ::kvcompress::testing::Bell;
using ::kvcompress::testing::TokenFigures;
using ::kvcompress::testing::UsableTargets;
using ::kvcompress::testing::WithTarget;

constexpr uint64_t kErrorTokens = 300, kErrorChannels = 80;
constexpr size_t kErrorCount = kErrorTokens * kErrorChannels;
constexpr double kSquaresBound = 22 * 0x1p-24;  // of sums, relative to those of their terms' magnitudes

struct ErrorCase {
  std::string name;
  std::vector<float> x, decoded;
};

template <class Value>
ErrorCase MakeCase(std::string name, Value value) {
  ErrorCase made{std::move(name), std::vector<float>(kErrorCount), std::vector<float>(kErrorCount)};
  std::mt19937 random(7);
  for (size_t i = 0; i < kErrorCount; ++i) {
    const auto [x, error] = value(i / kErrorChannels, i % kErrorChannels, random);
    made.x[i] = x;
    made.decoded[i] = x - error;
  }
  return made;
}

std::vector<ErrorCase> ErrorCases() {
  using Pair = std::pair<float, float>;  // x, and about what its error is
  std::vector<ErrorCase> cases;
  cases.push_back(MakeCase("usual", [](size_t, size_t, auto& random) {
    const float x = Bell(random);
    return Pair{x, Bell(random) / 8};
  }));
  for (const float spread : {0.0f, 0x1p-20f, 0x1p-10f}) {
    cases.push_back(MakeCase("constant", [spread](size_t, size_t channel, auto& random) {
      return Pair{0, static_cast<float>(1 + channel) * (1 + spread * Bell(random))};
    }));
  }
  cases.push_back(MakeCase("equal magnitudes", [](size_t, size_t, auto& random) {
    return Pair{Bell(random), random() % 2 == 0 ? 0.3f : -0.3f};
  }));
  cases.push_back(MakeCase("huge and small", [](size_t, size_t, auto& random) {
    const float magnitude = std::ldexp(1.0f, static_cast<int>(random() % 61) - 30);
    return Pair{magnitude * Bell(random), magnitude / 16 * Bell(random)};
  }));
  for (const float first : {1e3f, 1e30f, 3e38f}) {
    cases.push_back(MakeCase("large in the first token", [first](size_t token, size_t, auto& random) {
      return token == 0 ? Pair{first, first / 2} : Pair{Bell(random), Bell(random) / 8};
    }));
    cases.push_back(MakeCase("large once", [first](size_t token, size_t channel, auto& random) {
      return token + channel == 0 ? Pair{first, first / 2} : Pair{Bell(random), Bell(random) / 8};
    }));
  }
  // About a first token that is larger than all others, sums of these are made in every chunk.
  cases.push_back(MakeCase("large at chunks' first tokens", [](size_t token, size_t, auto& random) {
    return Pair{Bell(random), (token % 64 == 0 ? 1e3f : 1.0f) * (1 + Bell(random) / 64)};
  }));
  // Squares that are all rounded the same way beside the first.
  for (const float rest : {0x1.04p-12f, 0x1.ep-13f}) {
    cases.push_back(MakeCase("rounded one way", [rest](size_t token, size_t channel, auto&) {
      return Pair{0, token % 16 == 0 ? 1.0f : channel % 2 == 0 ? rest : -rest};
    }));
  }
  cases.push_back(MakeCase("tiny", [](size_t, size_t, auto& random) {
    return Pair{1e-20f * Bell(random), 1e-22f * Bell(random)};
  }));
  return cases;
}

struct ExactErrors {
  long double squares = 0, magnitudes = 0, cross = 0, cross_magnitudes = 0, value_squares = 0;
  double largest = 0;
};

ExactErrors ExactErrorsOf(const ErrorCase& one) {
  ExactErrors exact;
  for (size_t i = 0; i < kErrorCount; ++i) {
    const double error = static_cast<double>(one.x[i]) - static_cast<double>(one.decoded[i]);
    const long double x = one.x[i];
    exact.squares += static_cast<long double>(error) * error;
    exact.magnitudes += std::abs(error);
    exact.cross += x * error;
    exact.cross_magnitudes += std::abs(x * error);
    exact.value_squares += x * x;
    exact.largest = std::max(exact.largest, std::abs(error));
  }
  return exact;
}

std::vector<std::byte> BytesOfErrors(const std::vector<float>& values) {
  const auto* begin = reinterpret_cast<const std::byte*>(values.data());
  return {begin, begin + values.size() * sizeof(float)};
}

TEST(TokenErrorsTest, SumsAreExactWhateverTheErrorsAre) {
  const TokenLayout layout{.tokens = kErrorTokens, .channels = kErrorChannels};
  for (const ErrorCase& one : ErrorCases()) {
    const ExactErrors want = ExactErrorsOf(one);
    const ErrorSums tokens = TokenFigures(layout, DType::kF32, BytesOfErrors(one.x), BytesOfErrors(one.decoded));
    for (const int64_t target : UsableTargets()) {
      const WithTarget with(target);
      SCOPED_TRACE(::testing::Message() << one.name << ' ' << TargetName());
      TokenMeter meter;
      TokenSums sums;
      meter.Begin(layout, 0);
      MeasureTokens(DType::kF32, one.x.data(), one.decoded.data(), kErrorCount, meter);
      EXPECT_GT(want.squares, 0);
      EXPECT_NEAR(meter.sums().sum_error_squares, static_cast<double>(want.squares),
                  kSquaresBound * static_cast<double>(want.squares));
      EXPECT_NEAR(meter.sums().max_abs_error, want.largest, 0x1p-24 * want.largest);
      const auto near = [](double got, long double exact, long double magnitudes) {
        EXPECT_NEAR(got, static_cast<double>(exact), kSquaresBound * static_cast<double>(magnitudes));
      };
      near(meter.sums().sum_abs_error, want.magnitudes, want.magnitudes);
      near(meter.sums().sum_cross, want.cross, want.cross_magnitudes);
      near(meter.sums().sum_squares, want.value_squares, want.value_squares);
      meter.Take(sums);
      EXPECT_NEAR(sums.closed.token_error_deviations, tokens.token_error_deviations,
                  1e-4 * tokens.token_error_deviations);
    }
  }
}

// Errors of quantizers come as they are, in calls of any size.
TEST(TokenErrorsTest, ErrorsThatAreGivenHaveExactSquares) {
  const TokenLayout layout{.tokens = kErrorTokens, .channels = kErrorChannels};
  std::mt19937 random(3);
  for (const ErrorCase& one : ErrorCases()) {
    std::vector<float> errors(kErrorCount);
    long double want = 0;
    for (size_t i = 0; i < kErrorCount; ++i) {
      errors[i] = one.x[i] - one.decoded[i];
      want += static_cast<long double>(errors[i]) * errors[i];
    }
    SCOPED_TRACE(one.name);
    TokenMeter meter;
    meter.Begin(layout, 0);
    for (size_t at = 0; at < kErrorCount;) {
      const size_t n = std::min<size_t>(1 + random() % 3000, kErrorCount - at);
      meter.Add(DType::kF32, one.x.data() + at, errors.data() + at, n);
      at += n;
    }
    if (!meter.End()) continue;  // then they are measured again, as above
    EXPECT_NEAR(meter.sums().sum_error_squares, static_cast<double>(want), kSquaresBound * static_cast<double>(want));
  }
}

// Whoever has widened F16 may pass on what it has.
TEST(TokenErrorsTest, ValuesThatComeAsBinary32AsWellGiveTheSameSums) {
  const TokenLayout layout{.tokens = kErrorTokens, .channels = kErrorChannels};
  std::mt19937 random(5);
  std::vector<std::byte> x(2 * kErrorCount);
  std::vector<float> wide(kErrorCount), errors(kErrorCount);
  for (size_t i = 0; i < kErrorCount; ++i) {
    StoreFromF32(DType::kF16, Bell(random), x.data(), i);
    wide[i] = LoadAsF32(DType::kF16, x.data(), i);
    errors[i] = Bell(random) / 8;
  }
  for (const int64_t target : UsableTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    const WithTarget with(target);
    TokenMeter meters[2];
    for (TokenMeter& meter : meters) {
      meter.Begin(layout, 0);
      for (size_t at = 0; at < kErrorCount;) {
        const size_t n = std::min<size_t>(1 + random() % 3000, kErrorCount - at);
        meter.Add(DType::kF16, x.data() + 2 * at, errors.data() + at, n,
                  &meter == &meters[1] ? wide.data() + at : nullptr);
        at += n;
      }
      ASSERT_TRUE(meter.End());
    }
    EXPECT_EQ(std::memcmp(&meters[0].sums(), &meters[1].sums(), sizeof(ErrorSums)), 0);
    TokenSums sums[2];
    for (size_t i = 0; i < 2; ++i) meters[i].Take(sums[i]);
    EXPECT_EQ(std::memcmp(&sums[0].closed, &sums[1].closed, sizeof(ErrorSums)), 0);
  }
}

}  // namespace
}  // namespace kvcompress::simd
