#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "core/simd/rotary.h"
#include "core/simd/token_sums.h"
#include "tests/core/codec/chain_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/token_figures.h"
#include "tests/testing/values.h"

// Keys with channels a hundred times the others: what the same bits keep of them, and without them.
namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

constexpr size_t kHeads = 2, kTokens = 256, kChannels = 64;
constexpr double kTheta = 10000;

enum class Outliers { kNone, kConstants, kLoud };

bool IsOutlier(Outliers outliers, size_t channel) {
  return outliers == Outliers::kConstants ? channel % 13 == 5 : outliers == Outliers::kLoud && channel == 5;
}

// Of deviation 1 but for the outliers.
std::vector<float> Keys(Outliers outliers) {
  std::mt19937 random(3);
  std::vector<float> keys(kHeads * kTokens * kChannels);
  for (size_t i = 0; i < keys.size(); ++i) {
    const size_t channel = i % kChannels;
    keys[i] = Bell(random);
    if (!IsOutlier(outliers, channel)) continue;
    keys[i] = outliers == Outliers::kLoud ? 100 * keys[i] : keys[i] + (channel % 2 == 0 ? 100.0f : -100.0f);
  }
  return keys;
}

// As a model turns them.
std::vector<float> Turned(std::vector<float> keys) {
  simd::RotaryTable table;
  table.Make({.theta = kTheta}, kChannels, 0, kTokens);
  for (size_t head = 0; head < kHeads; ++head) {
    simd::TurnRows(table, 0, simd::RotaryPairs::kHalf, simd::RotaryTurn::kForward,
                   keys.data() + head * kTokens * kChannels, kTokens, kChannels);
  }
  return keys;
}

struct Coded {
  double token_snr = 0;
  double bits = 0;
  double quiet_error = 0;  // sum of squares of the channels that Outliers::kLoud leaves as they are
};

Coded Code(const std::string& spec, const std::vector<float>& keys) {
  const TensorDesc tensor = MakeTensor("layer_1_key", DType::kF16, {1, kHeads, kTokens, kChannels});
  std::vector<std::byte> values(2 * keys.size());
  for (size_t i = 0; i < keys.size(); ++i) StoreFromF32(DType::kF16, keys[i], values.data(), i);
  const CodecChain chain = MakeChain(spec, tensor);
  const auto payload = EncodeOneBlock(chain, tensor, values, nullptr);
  std::vector<std::byte> decoded(values.size());
  EXPECT_THAT(payload.status(), IsOk());
  EXPECT_THAT(chain.DecodeBlock(tensor, *payload, decoded), IsOk());
  const ErrorSums sums = TokenFigures(TokenLayoutOf(tensor), DType::kF16, values, decoded);
  Coded coded{.token_snr = 10 * std::log10(sums.token_deviations / sums.token_error_deviations),
              .bits = 8.0 * static_cast<double>(payload->size()) / static_cast<double>(keys.size())};
  for (size_t i = 0; i < keys.size(); ++i) {
    if (IsOutlier(Outliers::kLoud, i % kChannels)) continue;
    const double error = LoadAsF32(DType::kF16, values.data(), i) - LoadAsF32(DType::kF16, decoded.data(), i);
    coded.quiet_error += error * error;
  }
  return coded;
}

TEST(TransformOutliersTest, ConstantsOfChannelsCostNothing) {
  const Coded without = Code("transform(bits=3)", Keys(Outliers::kNone));
  const Coded with = Code("transform(bits=3)", Keys(Outliers::kConstants));
  EXPECT_GT(without.token_snr, 16);
  EXPECT_NEAR(with.token_snr, without.token_snr, 1);
  EXPECT_NEAR(with.bits, without.bits, 0.03);
}

// Keys whose constants turn differ more from token to token, so the errors are compared.
TEST(TransformOutliersTest, NeitherDoTheyWhereKeysAreTurned) {
  const std::string spec = "transform(bits=3,theta=10000)";
  const Coded without = Code(spec, Turned(Keys(Outliers::kNone)));
  const Coded with = Code(spec, Turned(Keys(Outliers::kConstants)));
  EXPECT_GT(without.token_snr, 16);
  EXPECT_GT(with.token_snr, without.token_snr - 1);
  EXPECT_NEAR(10 * std::log10(with.quiet_error / without.quiet_error), 0, 1);
  EXPECT_NEAR(with.bits, without.bits, 0.03);
  // What they do where nobody says how keys turn.
  const Coded untold = Code("transform(bits=3)", Turned(Keys(Outliers::kConstants)));
  EXPECT_GT(untold.quiet_error, 2 * with.quiet_error);
}

// It is spent on what differs most, and one step for all leaves the others what they had.
TEST(TransformOutliersTest, AChannelThatVariesMoreTakesLittleFromTheOthers) {
  const Coded without = Code("transform(bits=3)", Keys(Outliers::kNone));
  const Coded with = Code("transform(bits=3)", Keys(Outliers::kLoud));
  EXPECT_GT(with.token_snr, without.token_snr - 1);
  EXPECT_LT(10 * std::log10(with.quiet_error / without.quiet_error), 1);
  EXPECT_NEAR(with.bits, without.bits, 0.03);
}

}  // namespace
}  // namespace kvcompress
