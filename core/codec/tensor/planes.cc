#include "core/simd/planes.h"

#include <algorithm>
#include <array>
#include <bit>
#include <optional>
#include <span>

#include "core/codec/histogram.h"
#include "core/codec/registry.h"

namespace kvcompress {
namespace {

using simd::kMaxPlanes;
using simd::PlaneDelta;
using simd::PlaneFormat;
using simd::PlaneSplit;

constexpr size_t kModeBytes = 6;

struct Candidate {
  PlaneSplit split;
  PlaneDelta delta;
};

// From the simplest: of costs that are about equal the first is taken.
constexpr std::array<Candidate, 6> kCandidates = {{{PlaneSplit::kBytes, PlaneDelta::kNone},
                                                   {PlaneSplit::kFields, PlaneDelta::kNone},
                                                   {PlaneSplit::kBytes, PlaneDelta::kXor},
                                                   {PlaneSplit::kFields, PlaneDelta::kXor},
                                                   {PlaneSplit::kBytes, PlaneDelta::kToken},
                                                   {PlaneSplit::kFields, PlaneDelta::kToken}}};

// Of a block, this many values are looked at, in runs that lie evenly over it: a cache line of 16-bit values each.
constexpr size_t kSampleRun = 32;
constexpr size_t kSampleRuns = 64;
constexpr size_t kSample = kSampleRun * kSampleRuns;

// n log2 n.
constexpr auto kLogTerms = [] {
  std::array<uint32_t, kSample + 1> terms{};
  for (uint32_t n = 0; n <= kSample; ++n) terms[n] = n > 0 ? n * FixedLog2(n) : 0;
  return terms;
}();

// What a table takes for each different byte of a plane.
constexpr int64_t kTableBits = 4;

// How often each byte is in each plane of the sampled values, for each candidate.
template <typename Word>
class SampledPlanes {
 public:
  SampledPlanes(const std::byte* values, size_t count, size_t distance) {
    const size_t runs = std::clamp<size_t>(count / kSampleRun, 1, kSampleRuns);
    const size_t run = std::min(count, kSampleRun);
    sampled_ = runs * run;
    const auto begin_of = [&](size_t r) { return runs == 1 ? 0 : r * (count - run) / (runs - 1); };
    for (size_t r = 0; r < runs; ++r) {
      if (r + kRunsAhead < runs) FetchRun(values, begin_of(r + kRunsAhead), run, distance);
      AddRun(values, begin_of(r), run, distance);
    }
  }

  size_t sampled() const { return sampled_; }

  // The order-0 entropy of the candidate's planes of the sampled values, in bits / 4096.
  int64_t Cost(size_t candidate) const {
    int64_t cost = 0;
    for (const Counts& counts : counts_[candidate]) cost += EntropyOf(counts);
    return cost;
  }

  // What coding of `count` values takes of as many as are sampled, also in bits / 4096: a sample of s values with d
  // different ones has (d - 1) / (2 s log 2) bits a value less of entropy than what it is taken from, each takes a
  // place in a table, and a plane is stored where coding makes it no smaller.
  int64_t CodedCost(size_t candidate, size_t count) const {
    int64_t cost = 0;
    for (const Counts& counts : counts_[candidate]) cost += CodedCost(counts, count);
    return cost;
  }

 private:
  using Counts = std::array<uint16_t, 256>;

  int64_t EntropyOf(const Counts& counts) const {
    int64_t cost = kLogTerms[sampled_];
    for (const uint16_t n : counts) cost -= kLogTerms[n];
    return cost;
  }

  int64_t CodedCost(const Counts& counts, size_t count) const {
    constexpr int64_t kBias = 2955;  // 4096 / (2 log 2)
    const auto sampled = static_cast<int64_t>(sampled_);
    const auto all = static_cast<int64_t>(count);
    const int64_t different = std::ranges::count_if(counts, [](uint16_t n) { return n > 0; });
    const int64_t unseen = different * (kBias * (all - sampled) + 4096 * kTableBits * sampled) / all;
    return std::min(EntropyOf(counts) + unseen, int64_t{8} * 4096 * sampled);
  }

  // Runs lie far apart, where no CPU expects them: memory gets so many of them ready.
  static constexpr size_t kRunsAhead = 8;

  static void FetchRun(const std::byte* values, size_t begin, size_t run, size_t distance) {
    constexpr size_t kLine = 64;
    for (size_t at = 0; at < run; at += kLine / sizeof(Word)) {
      __builtin_prefetch(values + (begin + at) * sizeof(Word));
      if (begin >= distance) __builtin_prefetch(values + (begin + at - distance) * sizeof(Word));
    }
  }

  void AddRun(const std::byte* values, size_t begin, size_t run, size_t distance) {
    std::array<std::array<Word, kSampleRun>, kCandidates.size()> words;
    for (size_t i = 0; i < run; ++i) {
      const size_t at = begin + i;
      const Word value = LoadLE<Word>(values + at * sizeof(Word));
      const Word before = at >= distance ? LoadLE<Word>(values + (at - distance) * sizeof(Word)) : Word{0};
      words[0][i] = value;
      words[1][i] = std::rotl(value, 1);
      words[2][i] = static_cast<Word>(value ^ before);
      words[3][i] = std::rotl(words[2][i], 1);
      words[4][i] = static_cast<Word>(value - before);
      words[5][i] = static_cast<Word>(words[1][i] - std::rotl(before, 1));
    }
    for (size_t i = 0; i < run; ++i) {
      for (size_t c = 0; c < words.size(); ++c) {
        for (size_t p = 0; p < sizeof(Word); ++p) ++counts_[c][p][words[c][i] >> 8 * p & 0xff];
      }
    }
  }

  size_t sampled_ = 0;
  std::array<std::array<Counts, sizeof(Word)>, kCandidates.size()> counts_ = {};  // the lowest byte's first
};

// A candidate must save this part of the cost of a simpler one: less is within the error of sampling.
constexpr int64_t kMargin = 1024;

template <typename Cost>
size_t Cheapest(std::span<const size_t> candidates, Cost cost_of) {
  size_t best = candidates[0];
  int64_t best_cost = cost_of(best);
  for (const size_t candidate : candidates.subspan(1)) {
    const int64_t cost = cost_of(candidate);
    if (cost >= best_cost - best_cost / kMargin) continue;
    best = candidate;
    best_cost = cost;
  }
  return best;
}

// A word of 8 bytes is two values of 4 bytes here, every other one is one value.
size_t HalvesOf(DType dtype) { return DTypeSize(dtype) == 8 ? 2 : 1; }
size_t ValueSize(DType dtype) { return DTypeSize(dtype) / HalvesOf(dtype); }

// How many values lie between one token and the next: the extents after the last sequence axis or, without one, the
// last extent.
uint64_t TokenDistance(const TensorDesc& tensor) {
  uint64_t distance = HalvesOf(tensor.dtype);
  for (size_t i = tensor.shape.size(); i-- > 0;) {
    if (tensor.axes[i] == AxisRole::kSeq) return distance;
    distance *= tensor.shape[i];
  }
  return HalvesOf(tensor.dtype) * (tensor.shape.empty() ? 1 : tensor.shape.back());
}

// Blocks of so few values are looked at whole where a sample leaves a doubt.
constexpr size_t kSmallBlock = size_t{1} << 14;
// A doubt: costs that differ by less than this part.
constexpr int64_t kCloseBy = 64;

// What coding of the planes takes, in bits: where it makes a plane no smaller, that is stored.
uint64_t CodedBits(std::span<const StreamBuffer> streams) {
  uint64_t bits = 0;
  for (const StreamBuffer& plane : streams.subspan(1)) {
    const Histogram counts = CountBytes({plane.data, plane.size});
    const auto different = static_cast<uint64_t>(std::ranges::count_if(counts, [](uint32_t n) { return n > 0; }));
    bits += std::min<uint64_t>(EntropyBits(counts) + kTableBits * different, 8 * plane.size);
  }
  return bits;
}

// The choice of "split" after those of PlaneSplit.
constexpr int64_t kSplitByCodedCost = 3;

// docs/format.md, "planes": a mode stream and up to four planes of bytes. The kernels are in simd/planes.h.
class Planes final : public TensorCodec {
 public:
  explicit Planes(const StageSpec& stage)
      : by_coded_cost_(stage.Int("split") == kSplitByCodedCost),
        split_(by_coded_cost_ ? std::nullopt : Fixed<PlaneSplit>(stage, "split")),
        delta_(Fixed<PlaneDelta>(stage, "delta")) {}

  bool lossless() const override { return true; }
  bool is_fast() const override { return !by_coded_cost_; }
  bool tolerates_changing_values() const override { return true; }  // sizes do not depend on them
  size_t stream_count() const override { return 1 + kMaxPlanes; }

  void StreamBounds(const TensorDesc& tensor, size_t count, std::span<size_t> bounds) const override {
    bounds[0] = kModeBytes;
    const size_t values = count * HalvesOf(tensor.dtype);
    for (size_t p = 0; p < kMaxPlanes; ++p) bounds[1 + p] = p < ValueSize(tensor.dtype) ? values : 0;
  }

  absl::Status Encode(const Block& block, std::span<StreamBuffer> streams, ErrorSums*) const override {
    const size_t width = ValueSize(block.tensor.dtype);
    const size_t count = block.values.size() / width;
    const Choice choice = Choose(block.tensor, block.values);
    PlaneFormat format = FormatOf(choice.candidate, block.tensor);
    simd::PlanesOut planes{};
    for (size_t p = 0; p < kMaxPlanes; ++p) {
      planes[p] = reinterpret_cast<uint8_t*>(streams[1 + p].data);
      streams[1 + p].size = p < width ? count : 0;
    }
    const auto split = [&](const PlaneFormat& by) { simd::SplitPlanes(by, block.values.data(), count, planes); };
    split(format);
    if (choice.rival != choice.candidate) {
      const uint64_t bits = CodedBits(streams);
      const PlaneFormat rival = FormatOf(choice.rival, block.tensor);
      split(rival);
      if (CodedBits(streams) <= bits) {
        format = rival;
      } else {
        split(format);
      }
    }
    WriteMode(format, streams[0]);
    return absl::OkStatus();
  }

  absl::Status Decode(const TensorDesc& tensor, std::span<const ByteSpan> streams,
                      MutableByteSpan values) const override {
    const size_t width = ValueSize(tensor.dtype);
    const size_t count = values.size() / width;
    PlaneFormat format{.dtype = tensor.dtype};
    if (!ReadMode(streams[0], count, format)) return absl::DataLossError("planes: mode is not one that is written");
    simd::PlanesIn planes{};
    for (size_t p = 0; p < kMaxPlanes; ++p) {
      if (streams[1 + p].size() != (p < width ? count : 0)) {
        return absl::DataLossError("planes: stream has the wrong size");
      }
      planes[p] = reinterpret_cast<const uint8_t*>(streams[1 + p].data());
    }
    simd::MergePlanes(format, planes, count, values.data());
    return absl::OkStatus();
  }

 private:
  struct Choice {
    size_t candidate;  // of least cost without matches
    size_t rival;      // another one of about that cost, or the same
  };

  Choice Choose(const TensorDesc& tensor, ByteSpan values) const {
    const size_t count = values.size() / ValueSize(tensor.dtype);
    const uint64_t distance = TokenDistance(tensor);
    const bool may_delta = distance >= 1 && distance < count;
    const auto allowed = [&](const Candidate& candidate) {
      const bool none = candidate.delta == PlaneDelta::kNone;
      return split_.value_or(candidate.split) == candidate.split &&
             (may_delta ? delta_.value_or(candidate.delta) == candidate.delta : none);
    };
    std::array<size_t, kCandidates.size()> left{};
    size_t size = 0;
    for (size_t c = 0; c < kCandidates.size(); ++c) {
      if (allowed(kCandidates[c])) left[size++] = c;
    }
    if (size <= 1 || count == 0) return {left[0], left[0]};
    const std::span<const size_t> candidates(left.data(), size);
    const size_t sampled_distance = may_delta ? static_cast<size_t>(distance) : count;
    return VisitBits(tensor.dtype, [&](auto bits) {
      const SampledPlanes<decltype(bits)> sampled(values.data(), count, sampled_distance);
      const auto cost = [&](size_t c) { return by_coded_cost_ ? sampled.CodedCost(c, count) : sampled.Cost(c); };
      const size_t best = Cheapest(candidates, cost);
      return Choice{best, by_coded_cost_ && count <= kSmallBlock ? RivalOf(best, candidates, cost) : best};
    });
  }

  // The cheapest candidate with a delta where `best` has none, or without one where it has, if it costs about as much;
  // else `best`.
  template <typename Cost>
  static size_t RivalOf(size_t best, std::span<const size_t> candidates, Cost cost) {
    const auto has_delta = [](size_t c) { return kCandidates[c].delta != PlaneDelta::kNone; };
    const auto first = std::ranges::find_if(candidates, has_delta) - candidates.begin();
    const auto others =
        has_delta(best) ? candidates.first(static_cast<size_t>(first)) : candidates.subspan(static_cast<size_t>(first));
    if (others.empty()) return best;
    const size_t rival = Cheapest(others, cost);
    return cost(rival) < cost(best) + cost(best) / kCloseBy ? rival : best;
  }

  static PlaneFormat FormatOf(size_t candidate, const TensorDesc& tensor) {
    const auto [split, delta] = kCandidates[candidate];
    return {.dtype = tensor.dtype,
            .split = split,
            .delta = delta,
            .distance = delta == PlaneDelta::kNone ? 0 : static_cast<size_t>(TokenDistance(tensor))};
  }

  static void WriteMode(const PlaneFormat& format, StreamBuffer& mode) {
    mode.data[0] = static_cast<std::byte>(format.split);
    mode.data[1] = static_cast<std::byte>(format.delta);
    StoreLE(static_cast<uint32_t>(format.distance), mode.data + 2);
    mode.size = kModeBytes;
  }

  static bool ReadMode(ByteSpan mode, size_t count, PlaneFormat& format) {
    if (mode.size() != kModeBytes) return false;
    const auto split = std::to_integer<uint8_t>(mode[0]);
    const auto delta = std::to_integer<uint8_t>(mode[1]);
    format.distance = LoadLE<uint32_t>(mode.data() + 2);
    if (split > static_cast<uint8_t>(PlaneSplit::kFields) || delta > static_cast<uint8_t>(PlaneDelta::kXor)) {
      return false;
    }
    format.split = static_cast<PlaneSplit>(split);
    format.delta = static_cast<PlaneDelta>(delta);
    return format.delta == PlaneDelta::kNone ? format.distance == 0 : format.distance >= 1 && format.distance < count;
  }

  // What stands after "auto" in a parameter's choices, in the order of the enum; nothing for "auto".
  template <typename Enum>
  static std::optional<Enum> Fixed(const StageSpec& stage, std::string_view parameter) {
    const int64_t place = stage.Int(parameter);
    return place == 0 ? std::nullopt : std::optional(static_cast<Enum>(place - 1));
  }

  const bool by_coded_cost_;  // not by the entropy of a sample alone
  // Where there is none, each block gets the one that seems to code better.
  const std::optional<PlaneSplit> split_;
  const std::optional<PlaneDelta> delta_;
};

constexpr std::string_view kExamples[] = {
    "planes(split=auto,delta=auto)", "planes(split=fields,delta=token)", "planes(split=bytes,delta=xor)",
    "planes(split=fields,delta=none)|zstd(level=-1)", "sparse(ratio=0.2)|planes(split=bytes,delta=token)"};
constexpr Parameter kParameters[] = {
    Parameter::Word("split", 0, "auto|bytes|fields|coded",
                    "bits as they are, or with the exponent's together; coded: as auto, with tables counted"),
    Parameter::Word("delta", 0, "auto|none|token|xor",
                    "each value as its difference to the token before, or its exclusive or"),
};

}  // namespace

extern constinit const CodecRow kPlanes =
    RowOf<Planes>("planes", "a plane for each byte of a value, exponents together, lossless; for byte codecs",
                  kExamples, kParameters);

}  // namespace kvcompress
