#include "core/codec/tensor/transform/budget.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "core/base/block_size.h"
#include "core/base/buffer.h"
#include "core/base/elementary.h"
#include "core/codec/tensor/transform/rate.h"
#include "core/codec/tensor/transform/strip.h"

namespace kvcompress {
namespace {

// Bytes that a frame has beside payloads: of a block its header, its entry in the table and the sizes of its streams;
// of the frame its header and end, as they are for a usual spec.
constexpr double kBlockBytes = 24;
constexpr double kFrameBytes = 160;
constexpr double kCompactFrameBytes = 48;
constexpr double kArtifactIdBytes = 33;  // more than a usual spec, with the id of an artifact
// Of a coded block beside symbols and segments: its header; and of each lane what its state takes beyond its bits.
constexpr double kHeaderBytes = 10;
constexpr double kLaneBytes = 3;
// Bits of a channel in the side information, until a coding tells them.
constexpr double kChannelBits = 6;
// Left free, so that few blocks miss: bits of a value, and a part of all.
constexpr double kFreeBits = 0.005;
constexpr double kFreePart = 0.001;
constexpr double kFreePartOfUnseen = 0.01;  // where not all blocks were looked at
// Classes are counted at a step that is smaller by so many octaves, as what is below a step is not told apart.
constexpr double kFiner = 5;

class BudgetSearch {
 public:
  BudgetSearch(const TransformFormat& format, bool sinks, const Budget& budget, const TensorDesc& tensor,
               const std::vector<SampleBlock>& sample)
      : format_(format),
        sinks_(sinks),
        budget_(budget),
        tensor_(tensor),
        sample_(sample),
        has_all_(sample.size() == (budget.elements + budget.block_elements - 1) / budget.block_elements) {}

  // None where all blocks are refused.
  std::optional<FoundStep> Find() {
    double log = LogSize(sample_) + 1 - budget_.bits;
    constexpr int kRounds = 6;
    for (int i = 0; i < kRounds; ++i) {
      counted_log_ = log - kFiner;
      Count();
      if (elements_ == 0) return std::nullopt;
      log = Solve();
      if (log - counted_log_ > kFiner - 2) break;
    }
    constexpr double kNear = 0.2;  // octaves within which the rates' error is the same
    for (int i = 0; i < 2; ++i) {
      const double before = log;
      if (!Try(log)) break;
      log = Solve();
      if (std::fabs(log - before) < kNear) break;
    }
    FoundStep found{.step = StepOf(log), .block_elements = budget_.block_elements, .most_bytes = {}};
    if (has_all_) found.most_bytes = Shares(log);
    return found;
  }

 private:
  static double FixedBytes(size_t count) { return kHeaderBytes + kLaneBytes * static_cast<double>(LanesFor(count)); }

  // Blocks that are refused count as if they were not there.
  void Count() {
    counts_.assign(sample_.size(), {});
    all_ = {};
    elements_ = fixed_bytes_ = 0;
    for (size_t i = 0; i < sample_.size(); ++i) {
      const TransformInput& input = sample_[i].input;
      if (!CountClasses(format_, sinks_, StepOf(counted_log_), input, counts_[i])) continue;
      all_.Merge(counts_[i]);
      elements_ += static_cast<double>(input.count);
      fixed_bytes_ += FixedBytes(input.count);
    }
  }

  // About the bytes of values with these classes.
  double BytesOf(const ClassCounts& counts, double log) const {
    const double bits = error_ * counts.Bits(format_.trellis, log - counted_log_) + channel_bits_ * counts.channels;
    return bits / 8;
  }
  // What the payloads of all blocks of the sample may take.
  double Room() const {
    const auto elements = static_cast<double>(budget_.elements);
    const double id = format_.artifact != nullptr ? kArtifactIdBytes : 0;
    const double around = budget_.elements <= kMaxCompactElements
                              ? (kCompactFrameBytes + id) / elements
                              : kFrameBytes / elements + kBlockBytes / static_cast<double>(budget_.block_elements);
    return elements_ * (budget_.bits / 8 - around);
  }

  // The smallest step that keeps to the budget.
  double Solve() const {
    const double free = kFreePart + (has_all_ ? 0 : kFreePartOfUnseen);
    const double room = Room() * (1 - free) - elements_ * kFreeBits / 8 - fixed_bytes_;
    double low = counted_log_ - 40, high = counted_log_ + 40;
    constexpr int kSteps = 40;
    for (int i = 0; i < kSteps; ++i) {
      const double middle = 0.5 * (low + high);
      (BytesOf(all_, middle) > room ? low : high) = middle;
    }
    return high;
  }

  // Learns from the coding of a part of the sample with this step what words and side information take.
  bool Try(double log) {
    const size_t usual = MostUsual(log);
    const TransformInput part = PartOf(sample_[usual]);
    const size_t width = DTypeSize(part.dtype);
    thread_local Buffer side, words;
    side.Resize(MaxSideBytes(part.count, width));
    words.Resize(MaxWordBytes(part.count, width));
    const auto sizes = EncodeTransform(format_, sinks_, StepOf(log), part, side.data(), words.data());
    if (!sizes || sizes->words == 0) return false;
    // At the step of all counts: at another one classes would be rounded in another way, which at few bits matters.
    ClassCounts counted = counts_[usual];
    if (part.count < sample_[usual].input.count) {
      counted = {};
      CountClasses(format_, sinks_, StepOf(counted_log_), part, counted);
    }
    const double expected = counted.Bits(format_.trellis, log - counted_log_);
    const double bits = 8 * (static_cast<double>(sizes->words) - FixedBytes(part.count) + kHeaderBytes);
    if (expected > 0) error_ = std::clamp(bits / expected, 0.75, 1.5);
    channel_bits_ = std::max(8 * (static_cast<double>(sizes->side) - kHeaderBytes), 0.0) / sizes->classes.channels;
    return true;
  }

  // The block of the size that a bit's block has on average. The rates of louder and quieter blocks are off by other
  // parts; these cancel out.
  size_t MostUsual(double log) const {
    std::vector<double> bits;
    bits.reserve(counts_.size());
    double sum = 0, squares = 0;
    for (const ClassCounts& counts : counts_) {
      bits.push_back(counts.Bits(format_.trellis, log - counted_log_));
      sum += bits.back();
      squares += bits.back() * bits.back();
    }
    const double usual = sum > 0 ? squares / sum : 0;
    const auto off = [usual](double of) { return std::fabs(of - usual); };
    return static_cast<size_t>(std::ranges::min_element(bits, {}, off) - bits.begin());
  }

  // A run of its tokens in its middle; with an artifact all of it, as it may have to be of whole groups of heads.
  TransformInput PartOf(const SampleBlock& block) const {
    constexpr uint64_t kLeast = 1 << 14;
    constexpr uint64_t kPart = 10;
    const TransformLayout& layout = block.input.layout;
    const auto wanted = std::max(kLeast, static_cast<uint64_t>(elements_) / kPart);
    if (format_.artifact != nullptr || wanted >= block.input.count || !block.tokens.layout.has_tokens()) {
      return block.input;
    }
    const uint64_t tokens = std::max<uint64_t>(wanted / layout.channels, 1);
    const uint64_t all = block.input.count / layout.channels;
    if (tokens >= all) return block.input;
    const uint64_t offset = (all - tokens) / 2 * layout.channels;
    const auto count = static_cast<size_t>(tokens * layout.channels);
    TokenRun run = block.tokens;
    run.first += offset;
    return {block.input.dtype, LayoutOf(format_, tensor_, run, count), count,
            block.input.values + offset * DTypeSize(block.input.dtype)};
  }

  std::vector<size_t> Shares(double log) const {
    std::vector<double> bytes;
    bytes.reserve(sample_.size());
    double sum = 0;
    for (size_t i = 0; i < sample_.size(); ++i) {
      bytes.push_back(BytesOf(counts_[i], log) + FixedBytes(sample_[i].input.count));
      if (counts_[i].channels > 0) sum += bytes.back();
    }
    std::vector<size_t> shares;
    shares.reserve(bytes.size());
    for (const double own : bytes) shares.push_back(static_cast<size_t>(std::max(Room() * own / sum, 0.0)));
    return shares;
  }

  const TransformFormat& format_;
  const bool sinks_;
  const Budget& budget_;
  const TensorDesc& tensor_;
  const std::vector<SampleBlock>& sample_;
  const bool has_all_;  // blocks of the tensor
  // Of the blocks that are not refused:
  double counted_log_ = 0;  // log2 of the step of the counts
  std::vector<ClassCounts> counts_;
  ClassCounts all_;
  double elements_ = 0;
  double fixed_bytes_ = 0;
  double error_ = 1;  // of the rates: what they are to be multiplied by
  double channel_bits_ = kChannelBits;
};

}  // namespace

FoundStep StepForBudget(const TransformFormat& format, bool sinks, const Budget& budget, const TensorDesc& tensor,
                        const std::vector<SampleBlock>& sample) {
  if (sample.empty()) return {};
  return BudgetSearch(format, sinks, budget, tensor, sample).Find().value_or(FoundStep());
}

}  // namespace kvcompress
