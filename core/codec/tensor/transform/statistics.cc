#include "core/codec/tensor/transform/statistics.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "core/codec/tensor/transform/side.h"
#include "core/codec/tensor/transform/tables.h"
#include "core/simd/segment_values.h"

namespace kvcompress {
namespace {

// Fewer tokens have no statistics that tell an unusual one.
constexpr size_t kMinTokens = 8;
// Pages that are shorter do not tell where a sequence begins, and finer steps would cost too much of them.
constexpr size_t kMinSinkTokens = 64;
// Steps of the first tokens of a sequence, which attention looks at most.
constexpr std::array<int, 4> kSinkShifts = {3, 2, 1, 1};
// A token whose mean square, in deviations of its channels, is larger is no token like the others.
constexpr float kUnusualEnergy = 6;
// Added to variances: what is below a unit makes no difference.
constexpr float kFloor = 0.0625f;

// A token that reaches farther gets no finer step: points could not follow.
constexpr float kMaxFineReach = 0x1p20f;

// About the bits of a value of a channel of this class.
float BitsOf(int of) { return static_cast<float>(std::max(of + 5, 0)) * 0.25f; }

// Means and variances of the channels over the tokens that are not special, and second moments.
void Moments(const float* values, size_t tokens, size_t channels, SegmentStatistics& s) {
  s.means.resize(channels);
  s.variances.resize(channels);
  const auto special = static_cast<size_t>(std::count(s.is_special.begin(), s.is_special.end(), 1));
  const float part = 1 / static_cast<float>(std::max<size_t>(tokens - special, 1));
  simd::ChannelSums(values, tokens, channels, s.is_special.data(), s.means.data());
  for (float& mean : s.means) mean *= part;
  simd::ChannelSquares(values, tokens, channels, s.is_special.data(), s.means.data(), s.variances.data());
  for (float& variance : s.variances) variance *= part;
}

// Each token's mean square in deviations of the channels.
void Energies(const SegmentInput& input, const Segment& segment, SegmentStatistics& s) {
  const size_t channels = segment.channels;
  s.weights.resize(channels);
  const float share = 1 / static_cast<float>(channels);
  for (size_t c = 0; c < channels; ++c) s.weights[c] = share / (s.variances[c] + kFloor);
  s.energies.resize(segment.tokens);
  simd::TokenEnergies(input.values, segment.tokens, channels, s.means.data(), s.weights.data(), s.energies.data());
}

// The largest distance of a token's values from their means.
float Reach(const SegmentInput& input, const Segment& segment, size_t token, const SegmentStatistics& s) {
  const float* const row = input.values + token * segment.channels;
  float most = 0;
  for (size_t c = 0; c < segment.channels; ++c) most = std::max(most, std::fabs(row[c] - s.means[c]));
  return most;
}

// Finds the special tokens, and the moments of the others.
void FindSpecial(const SegmentInput& input, Segment& segment, SegmentStatistics& s) {
  s.is_special.assign(segment.tokens, 0);
  const uint64_t position = input.format.rotary.start + segment.position;
  const size_t sinks = input.sinks ? SinksOf(input.format, segment) : 0;
  std::fill_n(s.is_special.begin(), sinks, 1);
  Moments(input.values, segment.tokens, segment.channels, s);
  if (segment.tokens < kMinTokens) return;
  Energies(input, segment, s);
  for (size_t t = 0; t < segment.tokens; ++t) {
    const bool is_sink = t < sinks;
    if (!is_sink && !(s.energies[t] > kUnusualEnergy)) continue;
    s.is_special[t] = 1;
    const bool finer = is_sink && Reach(input, segment, t, s) < kMaxFineReach;
    int shift = std::min(ClassOf(s.energies[t]), SideModels::kMaxClassShift);
    if (std::abs(shift) < 2) shift = 0;
    segment.special.push_back({static_cast<uint32_t>(t), finer ? kSinkShifts[position + t] : 0, shift});
  }
  if (segment.special.size() > sinks) Moments(input.values, segment.tokens, segment.channels, s);
}

// About the bits of a number that the side information has, beyond those of 0, which is the usual one; by its
// magnitude.
float BitsBeyondZero(int32_t number) {
  static constexpr auto kByWidth = [] {
    std::array<float, 33> bits = {};
    for (size_t width = 1; width < bits.size(); ++width) bits[width] = 1 + 1.5f * static_cast<float>(width);
    return bits;
  }();
  return kByWidth[static_cast<size_t>(std::bit_width(static_cast<uint32_t>(std::abs(number))))];
}

// The nearest integer, the even one of two. A call of std::nearbyint takes longer than all else that a channel needs.
int32_t Nearest(float value) {
  constexpr double kNoFraction = 0x1.8p52;
  return static_cast<int32_t>(value + kNoFraction - kNoFraction);
}

// 2^-shift.
float PowerBelowOne(int shift) { return std::bit_cast<float>(static_cast<uint32_t>(127 - shift) << 23); }

// What the channels' variances say of their classes and means.
void TakeVariances(size_t tokens, SegmentStatistics& s) {
  const size_t channels = s.variances.size();
  s.classes.resize(channels);
  s.mean_costs.resize(channels);
  for (size_t c = 0; c < channels; ++c) s.classes[c] = ClassOf(s.variances[c]);
  const float of_all = static_cast<float>(tokens) * 0.18f;
  for (size_t c = 0; c < channels; ++c) s.mean_costs[c] = of_all / (s.variances[c] + 0.35f);
}

// Whether means are worth their bits.
bool MeansPay(size_t tokens, const SegmentStatistics& s) {
  float saved = 0;
  for (size_t c = 0; c < s.means.size(); ++c) {
    const float without = BitsOf(ClassOf(s.variances[c] + s.means[c] * s.means[c]));
    const float with = BitsOf(s.classes[c]);
    const float mean = 2 * s.means[c] * PowerBelowOne(SideModels::MeanShift(s.classes[c], tokens));
    saved += static_cast<float>(tokens) * (without - with) - (2 + BitsBeyondZero(static_cast<int32_t>(mean)));
  }
  return saved > 0;
}

// The mean of a channel, `own` in halves of a unit, as it is coded where `expected` is, in multiples of 2^shift off it:
// that one, where the difference costs less than it would. `squared`: the bits of being off, for its square.
int32_t ChooseMean(float own, float squared, int32_t expected, int shift, float& bits) {
  const auto steps = Nearest((own - static_cast<float>(expected)) * PowerBelowOne(shift));
  const int32_t mean = expected + steps * (1 << shift);
  const auto cost = [&](int32_t of) {
    const float off = own - static_cast<float>(of);
    return squared * off * off;
  };
  const float of_expected = cost(expected) + 1;
  const float of_own = cost(mean) + (1 + BitsBeyondZero(steps));
  bits += std::min(of_expected, of_own);
  return of_expected <= of_own ? expected : mean;
}

// Likewise its class: one between its own and the expected one, as each step off costs bits, too. How far off its own
// follows from how far that is from the expected one.
void ChooseClassSteps(size_t tokens, SegmentStatistics& s) {
  if (s.class_steps_tokens == tokens) return;
  s.class_steps_tokens = tokens;
  constexpr float kBitsOff = 0.044f;  // of a value, a quarter of an octave off
  for (int far = 0; far <= kMaxClass - kMinClass; ++far) {
    ClassStep best{0, 1 + BitsBeyondZero(far)};
    for (int off = 1; off <= std::min(far, 8); ++off) {
      const float cost =
          (1 + BitsBeyondZero(far - off)) + kBitsOff * static_cast<float>(tokens) * static_cast<float>(off * off);
      if (cost < best.bits) best = {off, cost};
    }
    s.class_steps[static_cast<size_t>(far)] = best;
  }
}

int ChooseClass(int own, int expected, const SegmentStatistics& s, float& bits) {
  const ClassStep& step = s.class_steps[static_cast<size_t>(std::abs(own - expected))];
  bits += step.bits;
  return own > expected ? own - step.off : own + step.off;
}

// Sets classes and means as they are coded with the segment `before` to expect them from, or without; returns about
// what they and their differences from the best ones cost in bits.
float ChooseChannels(const Segment* before, const SegmentStatistics& s, Segment& segment) {
  const size_t channels = segment.channels;
  segment.classes.resize(channels);
  segment.means.assign(channels, 0);
  float bits = 0;
  for (size_t c = 0; c < channels; ++c) {
    const float own = 2 * s.means[c];
    const int32_t expected_mean = before != nullptr ? before->means[c] : 0;
    const auto choose_mean = [&](int of, float& cost) {
      const int shift = SideModels::MeanShift(of, segment.tokens);
      segment.means[c] = ChooseMean(own, s.mean_costs[c], expected_mean, shift, cost);
    };
    // How far off the mean is widens the class, which in turn says how far off it may be.
    float ignored = 0;
    if (segment.has_means) choose_mean(s.classes[c], ignored);
    const float off = (own - static_cast<float>(segment.means[c])) * 0.5f;
    const int expected = before != nullptr ? before->classes[c] : c > 0 ? segment.classes[c - 1] : 0;
    segment.classes[c] = ChooseClass(ClassOf(s.variances[c] + off * off), expected, s, bits);
    if (segment.has_means) choose_mean(segment.classes[c], bits);
  }
  return bits;
}

}  // namespace

size_t SinksOf(const TransformFormat& format, const Segment& segment) {
  if (!segment.is_whole || segment.tokens < kMinSinkTokens) return 0;
  const uint64_t position = format.rotary.start + segment.position;
  return kSinkShifts.size() - std::min<uint64_t>(position, kSinkShifts.size());
}

void DescribeSegment(const SegmentInput& input, Segment& segment, SegmentStatistics& s) {
  FindSpecial(input, segment, s);
  TakeVariances(segment.tokens, s);
  segment.has_means = MeansPay(segment.tokens, s);
  ChooseClassSteps(segment.tokens, s);
  const float alone = ChooseChannels(nullptr, s, segment);
  if (input.before == nullptr || input.before->channels != segment.channels) return;
  s.classes_alone.swap(segment.classes);
  s.means_alone.swap(segment.means);
  segment.repeats = ChooseChannels(input.before, s, segment) < alone;
  if (segment.repeats) return;
  s.classes_alone.swap(segment.classes);
  s.means_alone.swap(segment.means);
}

}  // namespace kvcompress
