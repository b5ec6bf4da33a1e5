#include <cmath>
#include <iterator>

#include "core/base/elementary.h"
#include "core/simd/rotary.h"
#include "core/simd/rotary_angle.h"

namespace kvcompress::simd {

uint64_t RotaryFrequency(double theta, size_t dims, size_t pair) {
  constexpr double kTurnsPerRadian = 0x1.45f306dc9c883p-3;
  const double part = static_cast<double>(2 * pair) / static_cast<double>(dims);
  return static_cast<uint64_t>(std::ldexp(Exp2(-part * Log2(theta)) * kTurnsPerRadian, 64));
}

void RotaryTable::Make(double theta, size_t dims, uint64_t first, size_t tokens) {
  const bool same_turns = theta == theta_ && dims == 2 * pairs();
  if (same_turns && first == first_ && tokens <= tokens_) return;
  if (!same_turns) {
    frequencies_.resize(dims / 2);
    for (size_t i = 0; i < pairs(); ++i) frequencies_[i] = RotaryFrequency(theta, dims, i);
  }
  theta_ = theta;
  first_ = first;
  tokens_ = tokens;
  phases_.resize(pairs());
  values_.resize(dims * tokens);
  turns_.resize(pairs());
  for (size_t i = 0; i < pairs(); ++i) turns_[i] = frequencies_[i] * first;
  for (size_t t = 0; t < tokens; ++t) {
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
