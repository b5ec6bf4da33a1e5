#include <bit>
#include <cmath>

#include "core/simd/channel_classes.h"

namespace kvcompress::simd::scalar {
namespace {

// About the bits of a value of a channel of this class.
float BitsOf(int of) { return static_cast<float>(std::max(of + 5, 0)) * 0.25f; }

// 2^-shift.
float PowerBelowOne(int shift) { return std::bit_cast<float>(static_cast<uint32_t>(127 - shift) << 23); }

// The nearest integer, the even one of two.
int32_t Nearest(float value) {
  constexpr double kNoFraction = 0x1.8p52;
  return static_cast<int32_t>(value + kNoFraction - kNoFraction);
}

}  // namespace

void ClassesOfVariances(const ChannelSpan& span, int32_t* classes, float* saved) {
  const auto tokens = static_cast<float>(span.tokens);
  for (size_t c = 0; c < span.channels; ++c) {
    const float variance = span.variances[c], mean = span.means[c];
    classes[c] = ClassOf(variance);
    const float gain = tokens * (BitsOf(ClassOf(variance + mean * mean)) - BitsOf(classes[c]));
    const float steps = 2 * mean * PowerBelowOne(MeanShift(classes[c], span.tokens));
    saved[c] = gain - (2 + BitsBeyondZero(static_cast<int32_t>(steps)));
  }
}

void ClassesAboutMeans(const ChannelSpan& span, const int32_t* coded, int32_t* classes) {
  for (size_t c = 0; c < span.channels; ++c) {
    const float off = (2 * span.means[c] - static_cast<float>(coded[c])) * 0.5f;
    classes[c] = ClassOf(span.variances[c] + off * off);
  }
}

void ChooseMeans(const ChannelSpan& span, const int32_t* classes, const int32_t* expected, int32_t* coded,
                 float* bits) {
  const float of_all = static_cast<float>(span.tokens) * 0.18f;
  for (size_t c = 0; c < span.channels; ++c) {
    const float own = 2 * span.means[c];
    const float squared = of_all / (span.variances[c] + 0.35f);  // the bits of being off, for its square
    const int32_t usual = expected != nullptr ? expected[c] : 0;
    const int shift = MeanShift(classes[c], span.tokens);
    const int32_t steps = Nearest((own - static_cast<float>(usual)) * PowerBelowOne(shift));
    const int32_t nearest = usual + steps * (1 << shift);
    const auto cost = [&](int32_t of) {
      const float off = own - static_cast<float>(of);
      return squared * off * off;
    };
    const float of_usual = cost(usual) + 1;
    const float of_nearest = cost(nearest) + (1 + BitsBeyondZero(steps));
    bits[c] = std::min(of_usual, of_nearest);
    coded[c] = of_usual <= of_nearest ? usual : nearest;
  }
}

}  // namespace kvcompress::simd::scalar
