#include <algorithm>
#include <cmath>
#include <iterator>

#include "core/base/elementary.h"
#include "core/simd/rotary.h"
#include "core/simd/rotary_angle.h"

namespace kvcompress::simd {

namespace {

constexpr double kTurnsPerRadian = 0x1.45f306dc9c883p-3;

// How much of a pair's frequency, `turns` a token, is not slowed down: 0 to 1.
double KeptOf(double theta, const RotaryScaling& scaling, size_t dims, size_t pair, double turns) {
  const auto original = static_cast<double>(scaling.original);
  if (scaling.kind == RotaryScaling::Kind::kLlama3) {
    return std::clamp((original * turns - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0);
  }
  if (scaling.kind == RotaryScaling::Kind::kLinear) return 0;
  // The pair that turns so many times.
  const auto pair_of = [&](double times) {
    return static_cast<double>(dims) * Log2(original * kTurnsPerRadian / times) / (2 * Log2(theta));
  };
  const double first = std::max(std::floor(pair_of(scaling.high)), 0.0);
  double last = std::min(std::ceil(pair_of(scaling.low)), static_cast<double>(dims) - 1);
  if (last == first) last += 0.001;
  return 1 - std::clamp((static_cast<double>(pair) - first) / (last - first), 0.0, 1.0);
}

}  // namespace

std::string_view FaultOf(const RotaryScaling& scaling, double theta) {
  using Kind = RotaryScaling::Kind;
  constexpr double kMost = 1e6;
  constexpr uint64_t kMaxOriginal = 1'000'000'000'000'000;
  if (scaling.kind == Kind::kNone) return scaling == RotaryScaling{} ? "" : "numbers of a scaling without its kind";
  if (!(scaling.factor >= 1 && scaling.factor <= kMost)) return "the scaling's factor is not from 1 to 1e6";
  if (scaling.kind == Kind::kLinear) {
    const RotaryScaling alone = {.kind = Kind::kLinear, .factor = scaling.factor};
    return scaling == alone ? "" : "linear scaling has no low, high and original";
  }
  if (!(scaling.low >= 1 / kMost && scaling.low < scaling.high && scaling.high <= kMost)) {
    return "the scaling's low and high are not from 1e-6 to 1e6, low below high";
  }
  if (scaling.original < 1 || scaling.original > kMaxOriginal) return "the scaling's original is not from 1 to 1e15";
  return scaling.kind == Kind::kYarn && !(theta > 1) ? "yarn scaling needs a theta above 1" : "";
}

RotaryScaling WithUsual(RotaryScaling scaling) {
  const bool is_llama3 = scaling.kind == RotaryScaling::Kind::kLlama3;
  if (!is_llama3 && scaling.kind != RotaryScaling::Kind::kYarn) return scaling;
  if (scaling.low == 0) scaling.low = 1;
  if (scaling.high == 0) scaling.high = is_llama3 ? 4 : 32;
  if (scaling.original == 0 && is_llama3) scaling.original = 8192;
  return scaling;
}

uint64_t RotaryFrequency(double theta, const RotaryScaling& scaling, size_t dims, size_t pair) {
  const double part = static_cast<double>(2 * pair) / static_cast<double>(dims);
  double turns = Exp2(-part * Log2(theta)) * kTurnsPerRadian;
  if (scaling.kind != RotaryScaling::Kind::kNone) {
    const double kept = KeptOf(theta, scaling, dims, pair, turns);
    turns = turns * ((1 - kept) / scaling.factor + kept);
  }
  return static_cast<uint64_t>(std::ldexp(turns, 64));
}

void RotaryTable::Make(const RotaryEmbedding& rotary, size_t dims, uint64_t first, size_t tokens) {
  const bool same_turns = rotary.theta == theta_ && rotary.scaling == scaling_ && dims == 2 * pairs();
  const size_t made = same_turns && first == first_ ? tokens_ : 0;
  if (made > 0 && tokens <= made) return;
  if (!same_turns) {
    frequencies_.resize(dims / 2);
    for (size_t i = 0; i < pairs(); ++i) frequencies_[i] = RotaryFrequency(rotary.theta, rotary.scaling, dims, i);
  }
  theta_ = rotary.theta;
  scaling_ = rotary.scaling;
  first_ = first;
  tokens_ = tokens;
  phases_.resize(pairs());
  values_.resize(dims * tokens);
  turns_.resize(pairs());
  for (size_t i = 0; i < pairs(); ++i) turns_[i] = frequencies_[i] * (first + made);
  for (size_t t = made; t < tokens; ++t) {
    for (size_t i = 0; i < pairs(); ++i) {
      phases_[i] = static_cast<uint32_t>(turns_[i] >> 32);
      turns_[i] += frequencies_[i];
    }
    float* const cosines = values_.data() + dims * t;
    CosSin(phases_.data(), pairs(), cosines, cosines + pairs());
  }
}

namespace scalar {
namespace {

template <size_t kCount>
float Horner(const float (&terms)[kCount], float z) {
  float sum = terms[0];
  for (size_t i = 1; i < kCount; ++i) sum = sum * z + terms[i];
  return sum;
}

}  // namespace

void CosSin(const uint32_t* phases, size_t count, float* cosines, float* sines) {
  for (size_t i = 0; i < count; ++i) {
    const uint32_t quarter = (phases[i] + internal::kEighthTurn) >> 30;
    const auto rest = static_cast<int32_t>(phases[i] - (quarter << 30));
    const float x = static_cast<float>(rest) * internal::kRadians;
    const float s = Horner(internal::kSineTerms, x * x) * x;
    const float c = Horner(internal::kCosineTerms, x * x);
    const float first = quarter % 2 != 0 ? s : c;
    const float second = quarter % 2 != 0 ? c : s;
    cosines[i] = quarter == 1 || quarter == 2 ? -first : first;
    sines[i] = quarter >= 2 ? -second : second;
  }
}

void TurnRows(const RotaryTable& table, size_t first_token, RotaryPairs pairs, RotaryTurn turn, float* rows,
              size_t count, size_t stride) {
  const size_t n = table.pairs();
  const bool half = pairs == RotaryPairs::kHalf;
  for (size_t r = 0; r < count; ++r) {
    const float* const cosines = table.row(first_token + r);
    float* const row = rows + r * stride;
    for (size_t i = 0; i < n; ++i) {
      float& a = row[half ? i : 2 * i];
      float& b = row[half ? n + i : 2 * i + 1];
      const float c = cosines[i];
      const float s = turn == RotaryTurn::kForward ? cosines[n + i] : -cosines[n + i];
      const float turned = a * c - b * s;
      b = b * c + a * s;
      a = turned;
    }
  }
}

}  // namespace scalar
}  // namespace kvcompress::simd
