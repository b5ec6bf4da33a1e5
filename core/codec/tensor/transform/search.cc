#include "core/codec/tensor/transform/search.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "core/base/elementary.h"
#include "core/base/status_macros.h"
#include "core/codec/tensor/transform/budget.h"
#include "core/codec/tensor/transform/rate.h"
#include "core/codec/tensor/transform/sample.h"
#include "core/simd/error_sums.h"
#include "core/simd/token_meter.h"
#include "core/simd/token_sums.h"

namespace kvcompress {
namespace {

constexpr uint64_t kSampleBlocks = 4;
constexpr int kTrials = 16;

// The largest step that meets a target of SNR, by coding blocks; 0 where none does.
class Search {
 public:
  Search(const TransformFormat& format, bool sinks, double snr, const std::vector<SampleBlock>& sample)
      : format_(format), sinks_(sinks), snr_(snr), sample_(sample) {}

  float Find() {
    double log = FirstGuess();
    double slope = 1;
    std::optional<Trial> last, missed, met;
    for (int i = 0; i < kTrials; ++i) {
      log = std::round(log * kGrid) / kGrid;
      const Trial trial{log, Excess(log)};
      (trial.excess > 0 ? missed : met) = trial;
      if (met && met->excess > -kClose) break;
      if (missed && met && missed->log - met->log < kClose / 4) break;
      if (trial.excess > 0 && StepOf(log) == kMinStep) break;  // as all smaller ones
      if (last && trial.log != last->log) {
        slope = std::clamp((trial.excess - last->excess) / (trial.log - last->log), 0.3, 1.5);
      }
      last = trial;
      log -= (trial.excess + kClose / 2) / slope;
      if (missed && met) {
        const double width = missed->log - met->log;
        log = std::clamp(log, met->log + 0.1 * width, missed->log - 0.1 * width);
      } else if (i > 2) {
        // The other side is farther away the more often it was not found.
        const double least = 0.005 * (1 << i);
        log = trial.excess > 0 ? std::min(log, trial.log - least) : std::max(log, trial.log + least);
      }
    }
    return met ? StepOf(met->log) : 0;
  }

 private:
  // How near to its target a result is near enough, in bits.
  static constexpr double kClose = 0.008;
  // Steps are tried on a grid, so many an octave: sums of errors differ among instruction sets in their last bits, and
  // frames should not.
  static constexpr double kGrid = 4096;

  struct Trial {
    double log;     // log2 of the step
    double excess;  // bits of a value beyond the target: above 0 it is missed
  };

  // By the classes of the channels.
  double FirstGuess() const {
    constexpr double kFiner = 5;  // octaves: what is below a step is not told apart
    const double counted_log = LogSize(sample_) + 1 - snr_ / kDecibelsOfABit - kFiner;
    ClassCounts all;
    for (const SampleBlock& block : sample_) {
      ClassCounts own;
      if (CountClasses(format_, sinks_, StepOf(counted_log), block.input, own)) all.Merge(own);
    }
    double low = -10, high = 40;
    constexpr int kSteps = 30;
    for (int i = 0; i < kSteps; ++i) {
      const double middle = 0.5 * (low + high);
      const bool misses = Missing(all.Signal(middle), all.Noise(format_.trellis, middle)) > 0;
      (misses ? high : low) = middle;
    }
    return counted_log + low;
  }

  double Excess(double log) {
    if (has_no_signal_) return kNothingMissing;
    ErrorSums sums;
    for (const SampleBlock& block : sample_) {
      const TransformInput& input = block.input;
      const size_t width = DTypeSize(input.dtype);
      side_.resize(MaxSideBytes(input.count, width));
      words_.resize(MaxWordBytes(input.count, width));
      decoded_.resize(input.count * width);
      const float step = StepOf(log);
      if (!ReconstructTransform(format_, sinks_, step, input, side_.data(), words_.data(), decoded_.data())) continue;
      Measure(block, sums);
    }
    has_no_signal_ = !(sums.sum_deviations > 0) && !(sums.token_deviations > 0);
    return std::max(Missing(sums.sum_deviations, sums.sum_error_squares),
                    Missing(sums.token_deviations, sums.token_error_deviations));
  }

  // Adds the errors of what a block was decoded to; those about tokens as if it had all of its sequences.
  void Measure(const SampleBlock& block, ErrorSums& sums) {
    const TransformInput& input = block.input;
    simd::MeasureErrors(input.dtype, input.values, decoded_.data(), input.count, sums);
    const TokenLayout& all = block.tokens.layout;
    if (!all.has_tokens() || input.count < all.channels) return;
    const TokenLayout layout{std::min<uint64_t>(all.tokens, input.count / all.channels), all.channels};
    TokenSums run;
    TokenTotals totals;
    meter_.Begin(layout, 0);
    simd::MeasureTokens(input.dtype, input.values, decoded_.data(), input.count, meter_);
    meter_.Take(run);
    totals.Begin(layout);
    totals.Merge(run);
    totals.AddTo(sums);
  }

  // How many bits of a value an SNR lacks; an SNR of nothing lacks none.
  double Missing(double signal, double noise) const {
    if (!(signal > 0) || !(noise > 0)) return kNothingMissing;
    return snr_ / kDecibelsOfABit - 0.5 * Log2(std::clamp(signal / noise, 0x1p-1000, 0x1p1000));
  }

  static constexpr double kDecibelsOfABit = 6.0205999132796239;
  static constexpr double kNothingMissing = -1;

  const TransformFormat& format_;
  const bool sinks_;
  const double snr_;
  const std::vector<SampleBlock>& sample_;
  bool has_no_signal_ = false;  // which no step changes
  std::vector<std::byte> side_, words_, decoded_;
  simd::TokenMeter meter_;
};

}  // namespace

float StepOf(double log) {
  return static_cast<float>(std::clamp(Exp2(std::clamp(log, -120.0, 120.0)), double{kMinStep}, double{kMaxStep}));
}

absl::StatusOr<FoundStep> FindStep(const TransformFormat& format, bool sinks, const TransformTarget& target,
                                   const TensorDesc& tensor, const ByteSource& values, size_t block_elements) {
  const bool by_bits = target.bits > 0;
  KVC_ASSIGN_OR_RETURN(const std::vector<SampleBlock> sample,
                       SampleBlocks(format, tensor, values, block_elements, by_bits ? kBudgetBlocks : kSampleBlocks));
  if (by_bits) {
    const Budget budget{target.bits, values.size() / DTypeSize(tensor.dtype), block_elements};
    return StepForBudget(format, sinks, budget, tensor, sample);
  }
  FoundStep found;
  if (!sample.empty()) found.step = Search(format, sinks, target.snr, sample).Find();
  return found;
}

}  // namespace kvcompress
