#include "core/codec/tensor/transform/search.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "core/base/elementary.h"
#include "core/base/half.h"
#include "core/base/status_macros.h"
#include "core/simd/error_sums.h"
#include "core/simd/group_quant.h"
#include "core/simd/token_meter.h"
#include "core/simd/token_sums.h"

namespace kvcompress {
namespace {

constexpr uint64_t kSampleBlocks = 4;
constexpr int kTrials = 16;
// Bytes that a frame has beside payloads: of a block its header, its entry in the table and the sizes of its streams;
// of the frame its header and end, as they are for a usual spec.
constexpr double kBlockBytes = 24;
constexpr double kFrameBytes = 160;

struct SampleBlock {
  TransformInput input;
  bool has_tokens;
  std::vector<std::byte> values;
};

class Search {
 public:
  Search(const TransformFormat& format, bool sinks, const TransformTarget& target, double elements,
         double block_elements)
      : format_(format), sinks_(sinks), target_(target), elements_(elements), block_elements_(block_elements) {}

  std::vector<SampleBlock>& sample() { return sample_; }

  // The largest step that meets a target of SNR, the smallest one that meets one of bits.
  float Find() {
    if (sample_.empty()) return 1;
    // Towards the goal `log` falls for SNR and rises for bits.
    const double towards = target_.bits > 0 ? 1 : -1;
    double log = FirstGuess();
    std::optional<Trial> missed, met;
    for (int i = 0; i < kTrials; ++i) {
      const Trial trial{log, Excess(log)};
      std::optional<Trial>& side = trial.excess > 0 ? missed : met;
      side = trial;
      if (met && met->excess > -kClose) break;
      if (missed && met) {
        if (std::fabs(missed->log - met->log) < kClose / 4) break;
        const double part = missed->excess / (missed->excess - met->excess);
        log = missed->log + (met->log - missed->log) * std::clamp(part + 0.02, 0.1, 0.98);
      } else {
        // The other side is farther away the more often it was not found.
        const double least = 0.005 * (1 << i);
        log +=
            towards * (trial.excess > 0 ? std::max(trial.excess * 1.02, least) : std::min(trial.excess * 0.98, -least));
      }
    }
    return StepOf(met ? met->log : log + towards);
  }

 private:
  // How near to its target a result is near enough, in bits.
  static constexpr double kClose = 0.004;

  struct Trial {
    double log;     // log2 of the step
    double excess;  // bits of a value beyond the target: above 0 it is missed
  };

  static float StepOf(double log) {
    return static_cast<float>(std::clamp(Exp2(std::clamp(log, -120.0, 120.0)), double{kMinStep}, double{kMaxStep}));
  }

  double FirstGuess() const {
    double squares = 0;
    double count = 0;
    for (const SampleBlock& block : sample_) {
      for (size_t i = 0; i < block.input.count; ++i) {
        const double x = LoadAsF32(block.input.dtype, block.values.data(), i);
        squares += x * x;
      }
      count += static_cast<double>(block.input.count);
    }
    const double log = squares > 0 ? 0.5 * Log2(std::max(squares / count, 0x1p-1000)) : 0;
    return log + 1 - (target_.bits > 0 ? target_.bits : target_.snr / kDecibelsOfABit);
  }

  double Excess(double log) {
    double bytes = 0;
    double count = 0;
    ErrorSums sums;
    for (const SampleBlock& block : sample_) {
      const TransformInput& input = block.input;
      const size_t width = DTypeSize(input.dtype);
      side_.resize(MaxSideBytes(input.count, width));
      words_.resize(MaxWordBytes(input.count, width));
      decoded_.resize(block.values.size());
      std::byte* const decoded = target_.bits > 0 ? nullptr : decoded_.data();
      const auto sizes = EncodeTransform(format_, sinks_, StepOf(log), input, side_.data(), words_.data(), decoded);
      if (!sizes) continue;
      bytes += static_cast<double>(sizes->side + sizes->words);
      count += static_cast<double>(input.count);
      if (decoded != nullptr) Measure(block, sums);
    }
    if (target_.bits > 0) {
      const double around = kFrameBytes + kBlockBytes * std::ceil(elements_ / block_elements_);
      return 8 * (bytes / count + around / elements_) - target_.bits;
    }
    return std::max(Missing(sums.sum_deviations, sums.sum_error_squares),
                    Missing(sums.token_deviations, sums.token_error_deviations));
  }

  // Adds the errors of what a block was decoded to; those about tokens as if it had all of its sequences.
  void Measure(const SampleBlock& block, ErrorSums& sums) {
    const TransformInput& input = block.input;
    simd::MeasureErrors(input.dtype, block.values.data(), decoded_.data(), input.count, sums);
    const uint64_t channels = input.layout.channels;
    if (!block.has_tokens || input.count < channels) return;
    const TokenLayout layout{std::min<uint64_t>(input.layout.tokens, input.count / channels), channels};
    TokenSums run;
    TokenTotals totals;
    meter_.Begin(layout, 0);
    simd::MeasureTokens(input.dtype, block.values.data(), decoded_.data(), input.count, meter_);
    meter_.Take(run);
    totals.Begin(layout);
    totals.Merge(run);
    totals.AddTo(sums);
  }

  // How many bits of a value an SNR lacks; an SNR of nothing lacks none.
  double Missing(double signal, double noise) const {
    if (!(signal > 0) || !(noise > 0)) return -1;
    return target_.snr / kDecibelsOfABit - 0.5 * Log2(std::clamp(signal / noise, 0x1p-1000, 0x1p1000));
  }

  static constexpr double kDecibelsOfABit = 6.0205999132796239;

  const TransformFormat& format_;
  const bool sinks_;
  const TransformTarget target_;
  const double elements_;
  const double block_elements_;
  std::vector<SampleBlock> sample_;
  std::vector<std::byte> side_, words_, decoded_;
  simd::TokenMeter meter_;
};

}  // namespace

absl::StatusOr<float> FindStep(const TransformFormat& format, bool sinks, const TransformTarget& target,
                               const TensorDesc& tensor, const ByteSource& values, size_t block_elements) {
  const size_t width = DTypeSize(tensor.dtype);
  const uint64_t elements = values.size() / width;
  const uint64_t blocks = (elements + block_elements - 1) / block_elements;
  const uint64_t tried = std::min(blocks, kSampleBlocks);
  Search search(format, sinks, target, static_cast<double>(elements), static_cast<double>(block_elements));
  std::vector<std::byte> scratch;
  for (uint64_t i = 0; i < tried; ++i) {
    // The middle one of as many equal parts.
    const uint64_t first = (2 * i + 1) * blocks / (2 * tried) * block_elements;
    const auto count = static_cast<size_t>(std::min<uint64_t>(block_elements, elements - first));
    KVC_ASSIGN_OR_RETURN(const ByteSpan bytes, values.Get(first * width, count * width, scratch));
    if (simd::FindOutOfRange(tensor.dtype, bytes.data(), count, kMaxTransformable) < count) continue;
    const TokenRun tokens{TokenLayoutOf(tensor), first};
    const TransformInput input{tensor.dtype, LayoutOf(format, tensor, tokens, count), count, nullptr};
    search.sample().push_back({input, tokens.layout.has_tokens(), {bytes.begin(), bytes.end()}});
    search.sample().back().input.values = search.sample().back().values.data();
  }
  return search.Find();
}

}  // namespace kvcompress
