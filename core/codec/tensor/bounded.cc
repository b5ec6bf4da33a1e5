#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "core/codec/registry.h"

namespace kvcompress {
namespace {

// A codec that a block may be encoded with.
struct Rung {
  uint8_t mode;  // frozen: docs/format.md, "bounded"
  std::string_view spec;
};

// From the cheapest to the most expensive, in bytes. The last one is lossless and takes anything.
constexpr Rung kLadder[] = {
    {1, "int2(group=32)"},
    {2, "int3(group=64)"},
    {3, "int4(group=128)"},
    {4, "int4(group=64)"},
    {5, "int4(group=32)"},
    {6, "int5(group=64)"},
    {7, "int6(group=64)"},
    {8, "int8(group=64)"},
    {9, "int8(group=32)"},
    {10, "quant(bits=10,per=token)"},
    {11, "quant(bits=12,per=token)"},
    {0, "planes"},
};

// The rungs' specs.
const std::vector<ChainSpec>& Ladder() {
  static const std::vector<ChainSpec> ladder = [] {
    std::vector<ChainSpec> specs;
    for (const Rung& rung : kLadder) specs.push_back(*ChainSpec::ParseStages(rung.spec));
    return specs;
  }();
  return ladder;
}

// 0: no such bound.
struct Bounds {
  double min_snr = 0;  // dB
  double max_error = 0;
  double min_cosine = 0;
};

// Sums of binary32 lanes differ between instruction sets by at most kDoubt (relative, see MeasureErrors; the terms of
// the variance add up to less than this, too). A block is held to bounds that are tighter by kMargin, so that figures
// made of such sums keep the bounds as they were given.
constexpr double kDoubt = 5e-6;
constexpr double kMargin = 3e-5;

// What the errors of a block may be, such that a tensor whose every block keeps it keeps the bounds:
//   max_error    the largest of the blocks' errors is the tensor's;
//   min_snr      sum e^2 <= 10^(-snr/10) sum (x - mean)^2 with the block's own mean: the right sides of the blocks add
//                up to no more than the tensor's;
//   min_cosine   sum e^2 <= (1 - C^2) sum x^2: the blocks' add up to the tensor's, and the angle between x and x + e is
//                at most the arc sine of |e| / |x|.
class Allowance {
 public:
  explicit Allowance(const Bounds& bounds)
      : max_error_(bounds.max_error),
        // binary32: what std::pow makes of the last digits of binary64 depends on the library.
        noise_(static_cast<float>(std::pow(10.0, -bounds.min_snr / 10))),
        sine_squares_((1 - bounds.min_cosine) * (1 + bounds.min_cosine)),
        has_snr_(bounds.min_snr > 0),
        has_cosine_(bounds.min_cosine > 0) {
    // So close to 1 that binary64 would decide: only what has no error will do.
    if (sine_squares_ < 1e-9) sine_squares_ = 0;
  }

  bool LargestErrorIsKept(double max_abs_error) const {
    return max_error_ == 0 || max_abs_error * (1 + kMargin) <= max_error_;
  }

  // The largest sum of e^2 for a block of values with the sums `x`, less what an error of `doubt` in these may add.
  double ErrorSquares(const ErrorSums& x, double doubt) const {
    double allowed = std::numeric_limits<double>::infinity();
    if (has_snr_) {
      const double deviations = x.sum_squares - x.sum * x.sum / static_cast<double>(x.count);
      allowed = std::min(allowed, noise_ * (deviations - (kMargin + doubt) * x.sum_squares));
    }
    if (has_cosine_) allowed = std::min(allowed, sine_squares_ * x.sum_squares * (1 - doubt));
    return std::max(0.0, allowed * (1 - kMargin));
  }

 private:
  double max_error_;
  double noise_;
  double sine_squares_;
  bool has_snr_;
  bool has_cosine_;
};

// Decides for one block, equally on every CPU: by the sums of vectors where these leave no doubt, else by those of the
// scalar definition.
class Judge {
 public:
  Judge(const Allowance& allowance, DType dtype, ByteSpan values)
      : allowance_(allowance), dtype_(dtype), values_(values), count_(values.size() / DTypeSize(dtype)) {
    simd::MeasureErrors(dtype, values.data(), values.data(), count_, sums_);
    if (count_ == 0) return;
    low_ = allowance.ErrorSquares(sums_, kDoubt);
    high_ = allowance.ErrorSquares(sums_, -kDoubt);
  }

  // Of the values, without errors.
  const ErrorSums& sums() const { return sums_; }
  bool has_only_finite_values() const { return sums_.count == count_; }

  // Whether `values`, the block's or some of them, with errors `e`, keep `slack` times their share of what the block is
  // allowed. `decode` gives what the values decode to.
  template <typename Decode>
  bool Keeps(ByteSpan values, ErrorSums e, double slack, Decode decode) {
    const double share = slack * static_cast<double>(e.count) / static_cast<double>(count_);
    const bool kept = allowance_.LargestErrorIsKept(e.max_abs_error * (1 + kDoubt)) &&
                      e.sum_error_squares * (1 + kDoubt) <= share * low_;
    const bool missed = !allowance_.LargestErrorIsKept(e.max_abs_error * (1 - kDoubt)) ||
                        e.sum_error_squares * (1 - kDoubt) > share * high_;
    if (kept || missed) return kept;
    const ByteSpan decoded = decode();
    e = {};
    simd::scalar::MeasureErrors(dtype_, values.data(), decoded.data(), values.size() / DTypeSize(dtype_), e);
    return allowance_.LargestErrorIsKept(e.max_abs_error) && e.sum_error_squares <= share * Exact();
  }

 private:
  double Exact() {
    if (!exact_) {
      ErrorSums sums;
      simd::scalar::MeasureErrors(dtype_, values_.data(), values_.data(), count_, sums);
      exact_ = allowance_.ErrorSquares(sums, 0);
    }
    return *exact_;
  }

  const Allowance& allowance_;
  const DType dtype_;
  const ByteSpan values_;
  const size_t count_;
  ErrorSums sums_;
  double low_ = 0;
  double high_ = 0;
  std::optional<double> exact_;
};

// Runs of whole groups from all over a block.
constexpr size_t kSampleRuns = 8;
constexpr size_t kSampleRunValues = 512;
constexpr size_t kSampleAlignment = 128;
constexpr size_t kMinSampledBlock = 4 * kSampleRuns * kSampleRunValues;
// A sample that misses by less than this may belong to a block that does not.
constexpr double kSampleSlack = 1.5;

void TakeSample(ByteSpan values, size_t width, Buffer& sample) {
  const size_t last = values.size() / width - kSampleRunValues;
  sample.Resize(kSampleRuns * kSampleRunValues * width);
  for (size_t run = 0; run < kSampleRuns; ++run) {
    const size_t begin = run * last / (kSampleRuns - 1) / kSampleAlignment * kSampleAlignment;
    std::memcpy(sample.data() + run * kSampleRunValues * width, values.data() + begin * width,
                kSampleRunValues * width);
  }
}

struct Scratch {
  Buffer sample;
  Buffer decoded;
  std::vector<Buffer> streams;  // of the sample
};

Scratch& ThreadScratch() {
  thread_local Scratch scratch;
  return scratch;
}

constexpr size_t kMaxInnerStreams = 8;

// docs/format.md, "bounded": a stream with the mode, a byte, and then those of the codec that was chosen.
class Bounded final : public TensorCodec {
 public:
  Bounded(const Bounds& bounds, std::vector<std::unique_ptr<TensorCodec>> codecs)
      : allowance_(bounds), codecs_(std::move(codecs)) {
    for (const auto& codec : codecs_) inner_streams_ = std::max(inner_streams_, codec->stream_count());
  }

  bool lossless() const override { return false; }
  size_t stream_count() const override { return 1 + inner_streams_; }

  void StreamBounds(const TensorDesc& tensor, size_t count, std::span<size_t> bounds) const override {
    std::ranges::fill(bounds, 0);
    bounds[0] = 1;
    for (const auto& codec : codecs_) {
      std::array<size_t, kMaxInnerStreams> own;
      codec->StreamBounds(tensor, count, std::span(own).first(codec->stream_count()));
      const std::span<size_t> of_codec = Inner(bounds, *codec);
      for (size_t i = 0; i < of_codec.size(); ++i) of_codec[i] = std::max(of_codec[i], own[i]);
    }
  }

  bool measures() const override { return true; }

  absl::Status Encode(const Block& block, std::span<StreamBuffer> streams, ErrorSums* sums) const override {
    const ByteSpan values = block.values;
    Judge judge(allowance_, block.tensor.dtype, values);
    ErrorSums own;
    size_t chosen = codecs_.size() - 1;
    // What cannot be judged is kept as it is.
    if (judge.has_only_finite_values() && !values.empty()) {
      KVC_ASSIGN_OR_RETURN(chosen, Choose(block.tensor, values, judge, streams, own));
    }
    if (chosen == codecs_.size() - 1) {
      own = judge.sums();
      KVC_RETURN_IF_ERROR(codecs_.back()->Encode(block, Inner(streams, *codecs_.back()), nullptr));
    }
    const size_t unused = inner_streams_ - codecs_[chosen]->stream_count();
    for (StreamBuffer& stream : streams.subspan(1, unused)) stream.size = 0;
    streams[0].data[0] = std::byte{kLadder[chosen].mode};
    streams[0].size = 1;
    if (sums != nullptr) sums->Merge(own);
    return absl::OkStatus();
  }

  absl::Status Decode(const TensorDesc& tensor, std::span<const ByteSpan> streams,
                      MutableByteSpan values) const override {
    KVC_ASSIGN_OR_RETURN(const size_t rung, RungOf(streams));
    const TensorCodec& codec = *codecs_[rung];
    for (const ByteSpan& unused : streams.subspan(1, inner_streams_ - codec.stream_count())) {
      if (!unused.empty()) return absl::DataLossError("bounded: bytes in a stream that its mode does not have");
    }
    return codec.Decode(tensor, Inner(streams, codec), values);
  }

  bool chooses() const override { return true; }
  absl::StatusOr<std::string> Chosen(std::span<const ByteSpan> streams) const override {
    KVC_ASSIGN_OR_RETURN(const size_t rung, RungOf(streams));
    return Ladder()[rung].text();
  }

 private:
  // The streams of `codec`: the last ones, so that the bounds of small and of large ones do not add up.
  template <typename Stream>
  static std::span<Stream> Inner(std::span<Stream> streams, const TensorCodec& codec) {
    return streams.last(codec.stream_count());
  }

  static absl::StatusOr<size_t> RungOf(std::span<const ByteSpan> streams) {
    if (streams[0].size() != 1) return absl::DataLossError("bounded: mode has the wrong size");
    const auto mode = std::to_integer<uint8_t>(streams[0][0]);
    for (size_t i = 0; i < std::size(kLadder); ++i) {
      if (kLadder[i].mode == mode) return i;
    }
    return absl::DataLossError(absl::StrCat("bounded: unknown mode ", mode));
  }

  // Encodes with each rung below the last, the cheapest first, until one keeps the bounds; the last rung, of which
  // nothing is encoded, when none does.
  absl::StatusOr<size_t> Choose(const TensorDesc& tensor, ByteSpan values, Judge& judge,
                                std::span<StreamBuffer> streams, ErrorSums& sums) const {
    Scratch& scratch = ThreadScratch();
    const size_t width = DTypeSize(tensor.dtype);
    const bool sampled = values.size() / width >= kMinSampledBlock;
    if (sampled) TakeSample(values, width, scratch.sample);
    for (size_t i = 0; i + 1 < codecs_.size(); ++i) {
      const TensorCodec& codec = *codecs_[i];
      if (sampled) {
        std::array<StreamBuffer, kMaxInnerStreams> room;
        const std::span<StreamBuffer> own = std::span(room).first(codec.stream_count());
        PlaceStreams(codec, tensor, scratch.sample.size() / width, scratch, own);
        ErrorSums unused;
        KVC_ASSIGN_OR_RETURN(const bool kept,
                             Keeps(codec, tensor, scratch.sample.span(), judge, kSampleSlack, own, unused));
        if (!kept) continue;
      }
      sums = {};
      KVC_ASSIGN_OR_RETURN(const bool kept, Keeps(codec, tensor, values, judge, 1, Inner(streams, codec), sums));
      if (kept) return i;
    }
    return codecs_.size() - 1;
  }

  static void PlaceStreams(const TensorCodec& codec, const TensorDesc& tensor, size_t count, Scratch& scratch,
                           std::span<StreamBuffer> streams) {
    std::array<size_t, kMaxInnerStreams> bounds;
    codec.StreamBounds(tensor, count, std::span(bounds).first(streams.size()));
    scratch.streams.resize(kMaxInnerStreams);
    for (size_t i = 0; i < streams.size(); ++i) {
      scratch.streams[i].Resize(bounds[i]);
      streams[i] = {scratch.streams[i].data(), 0};
    }
  }

  // Encodes `values` with `codec`, adds the errors to `sums`, and asks the judge.
  static absl::StatusOr<bool> Keeps(const TensorCodec& codec, const TensorDesc& tensor, ByteSpan values, Judge& judge,
                                    double slack, std::span<StreamBuffer> streams, ErrorSums& sums) {
    const DType dtype = tensor.dtype;
    const Block block{tensor, 0, values.size() / DTypeSize(dtype), values};
    const absl::Status encoded = codec.Encode(block, streams, codec.measures() ? &sums : nullptr);
    if (absl::IsInvalidArgument(encoded)) return false;  // a value that it cannot hold
    KVC_RETURN_IF_ERROR(encoded);

    Buffer& decoded = ThreadScratch().decoded;
    decoded.Resize(values.size());
    absl::Status status;
    const auto decode = [&]() -> ByteSpan {
      std::array<ByteSpan, kMaxInnerStreams> in;
      for (size_t i = 0; i < streams.size(); ++i) in[i] = {streams[i].data, streams[i].size};
      status = codec.Decode(tensor, std::span(in).first(streams.size()), decoded.span());
      return decoded.span();
    };
    if (!codec.measures()) {
      decode();
      simd::MeasureErrors(dtype, values.data(), decoded.data(), values.size() / DTypeSize(dtype), sums);
    }
    const bool kept = judge.Keeps(values, sums, slack, decode);
    KVC_RETURN_IF_ERROR(status);
    return kept;
  }

  const Allowance allowance_;
  const std::vector<std::unique_ptr<TensorCodec>> codecs_;  // of the rungs
  size_t inner_streams_ = 0;                                // the most that one of them has
};

constexpr std::string_view kExamples[] = {"bounded(min_snr=30,max_error=0,min_cosine=0)",
                                          "bounded(min_snr=20,max_error=0.05,min_cosine=0.999)",
                                          "bounded(min_snr=0,max_error=0,min_cosine=0.99)|zstd(level=1)"};
constexpr Parameter kParameters[] = {
    Parameter::Real("min_snr", 0, 0, 200, "the tensor's signal-to-noise ratio, in dB, is at least this"),
    Parameter::Real("max_error", 0, 0, std::numeric_limits<float>::max(), "no value's error is above this"),
    Parameter::Real("min_cosine", 0, 0, 1, "the tensor's cosine similarity is at least this"),
};

absl::Status Check(const StageSpec& stage) {
  if (std::ranges::any_of(stage.values, [](double bound) { return bound > 0; })) return absl::OkStatus();
  return absl::InvalidArgumentError("bounded needs a bound above 0: min_snr, max_error or min_cosine");
}

MadeCodec<TensorCodec> Make(const CodecArgs& args) {
  std::vector<std::unique_ptr<TensorCodec>> codecs;
  for (const ChainSpec& rung : Ladder()) {
    const StageSpec& stage = rung.tensor_codec();
    KVC_ASSIGN_OR_RETURN(auto codec, stage.codec->make_tensor_codec({stage, args.environment, args.tensor}));
    if (codec->stream_count() > kMaxInnerStreams) return absl::InternalError("bounded: a rung has too many streams");
    codecs.push_back(std::move(codec));
  }
  const StageSpec& stage = args.stage;
  return std::make_unique<Bounded>(Bounds{.min_snr = stage.Number("min_snr"),
                                          .max_error = stage.Number("max_error"),
                                          .min_cosine = stage.Number("min_cosine")},
                                   std::move(codecs));
}

}  // namespace

extern constinit const CodecRow kBounded = {
    .name = "bounded",
    .summary = "for each block the smallest of intN, quant and lossless that keeps the bounds; 0: no bound",
    .parameters = kParameters,
    .examples = kExamples,
    .check = Check,
    .make_tensor_codec = Make};

}  // namespace kvcompress
