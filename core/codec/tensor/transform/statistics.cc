#include "core/codec/tensor/transform/statistics.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/codec/tensor/transform/side.h"
#include "core/codec/tensor/transform/tables.h"
#include "core/simd/channel_classes.h"
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

simd::ChannelSpan ChannelsOf(size_t tokens, const SegmentStatistics& s) {
  return {s.means.size(), tokens, s.means.data(), s.variances.data()};
}

// Whether means are worth their bits. Sets the variances' classes.
bool MeansPay(size_t tokens, SegmentStatistics& s) {
  s.classes.resize(s.means.size());
  s.savings.resize(s.means.size());
  simd::ClassesOfVariances(ChannelsOf(tokens, s), s.classes.data(), s.savings.data());
  float saved = 0;
  for (const float bits : s.savings) saved += bits;
  return saved > 0;
}

// The class of a channel as it is coded is one between its own and the expected one, as each step off costs bits. How
// far off its own follows from how far that is from the expected one.
void ChooseClassSteps(size_t tokens, SegmentStatistics& s) {
  if (s.class_steps_tokens == tokens) return;
  s.class_steps_tokens = tokens;
  constexpr float kBitsOff = 0.044f;  // of a value, a quarter of an octave off
  constexpr int kFarthest = kMaxClass - kMinClass;
  for (int far = 0; far <= kFarthest; ++far) {
    ClassStep best{0, 1 + simd::BitsBeyondZero(far)};
    for (int off = 1; off <= std::min(far, 8); ++off) {
      const float cost =
          (1 + simd::BitsBeyondZero(far - off)) + kBitsOff * static_cast<float>(tokens) * static_cast<float>(off * off);
      if (cost < best.bits) best = {off, cost};
    }
    s.class_steps[static_cast<size_t>(kFarthest - far)] = best;
    s.class_steps[static_cast<size_t>(kFarthest + far)] = {-best.off, best.bits};
  }
}

// Chooses classes and means as they are coded with the segment `before` to expect them from, or without.
void ChooseChannels(const Segment* before, const Segment& segment, const SegmentStatistics& s, ChannelChoice& choice) {
  const size_t channels = segment.channels;
  const simd::ChannelSpan span = ChannelsOf(segment.tokens, s);
  choice.classes.resize(channels);
  choice.means.assign(channels, 0);
  choice.class_bits.resize(channels);
  choice.mean_bits.assign(channels, 0);
  const auto choose_means = [&](const std::vector<int>& classes) {
    const int32_t* const expected = before != nullptr ? before->means.data() : nullptr;
    simd::ChooseMeans(span, classes.data(), expected, choice.means.data(), choice.mean_bits.data());
  };
  // How far off the mean is widens the class, which in turn says how far off it may be.
  if (segment.has_means) choose_means(s.classes);
  simd::ClassesAboutMeans(span, choice.means.data(), choice.classes.data());
  int expected = 0;
  for (size_t c = 0; c < channels; ++c) {
    if (before != nullptr) expected = before->classes[c];
    const int own = choice.classes[c];
    const ClassStep& step = s.class_steps[static_cast<size_t>(own - expected + kMaxClass - kMinClass)];
    choice.class_bits[c] = step.bits;
    expected = own + step.off;
    choice.classes[c] = expected;
  }
  if (segment.has_means) choose_means(choice.classes);
}

// Whether the segment before says so much of this one that it saves bits. Both sums are made at once, as each addition
// waits for the one before it.
bool RepeatingPays(const SegmentStatistics& s) {
  float alone = 0, repeated = 0;
  for (size_t c = 0; c < s.alone.classes.size(); ++c) {
    alone += s.alone.class_bits[c];
    repeated += s.repeated.class_bits[c];
    alone += s.alone.mean_bits[c];
    repeated += s.repeated.mean_bits[c];
  }
  return repeated < alone;
}

}  // namespace

size_t SinksOf(const TransformFormat& format, const Segment& segment) {
  if (!segment.is_whole || segment.tokens < kMinSinkTokens) return 0;
  const uint64_t position = format.rotary.start + segment.position;
  return kSinkShifts.size() - std::min<uint64_t>(position, kSinkShifts.size());
}

void DescribeSegment(const SegmentInput& input, Segment& segment, SegmentStatistics& s) {
  FindSpecial(input, segment, s);
  segment.has_means = MeansPay(segment.tokens, s);
  ChooseClassSteps(segment.tokens, s);
  ChooseChannels(nullptr, segment, s, s.alone);
  if (input.before != nullptr && input.before->channels == segment.channels) {
    ChooseChannels(input.before, segment, s, s.repeated);
    segment.repeats = RepeatingPays(s);
  }
  const ChannelChoice& choice = segment.repeats ? s.repeated : s.alone;
  segment.classes = choice.classes;
  segment.means = choice.means;
}

}  // namespace kvcompress
