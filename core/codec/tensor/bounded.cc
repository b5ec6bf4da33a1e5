#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <optional>

#include "absl/strings/str_cat.h"
#include "core/base/bytes.h"
#include "core/base/status_macros.h"
#include "core/codec/f8_codec.h"
#include "core/codec/registry.h"
#include "core/codec/tensor/bounds.h"
#include "core/codec/tensor/channel_noise.h"
#include "core/simd/token_meter.h"

namespace kvcompress {
namespace {

// A codec that a block may be encoded with.
struct Rung {
  uint8_t mode;  // frozen: docs/format.md, "bounded"
  std::string_view spec;
  int channel_bits = 0;  // of those that give each channel a scale: they are for blocks that are judged by their tokens
};

// From the cheapest to the most expensive, in bytes. The last one is lossless and takes anything.
constexpr Rung kLadder[] = {
    {1, "int2(group=32)"},
    {2, "int3(group=64)"},
    {12, "quant(bits=3,per=channel,symmetric=false)", 3},
    {3, "int4(group=128)"},
    {4, "int4(group=64)"},
    {5, "int4(group=32)"},
    {13, "quant(bits=4,per=channel,symmetric=false)", 4},
    {6, "int5(group=64)"},
    {14, "quant(bits=5,per=channel,symmetric=false)", 5},
    {7, "int6(group=64)"},
    {15, "quant(bits=6,per=channel,symmetric=false)", 6},
    {16, "quant(bits=7,per=channel,symmetric=false)", 7},
    {8, "int8(group=64)"},
    {9, "int8(group=32)"},
    {17, "quant(bits=8,per=channel,symmetric=false)", 8},
    {10, "quant(bits=10,per=token)"},
    {18, "quant(bits=10,per=channel,symmetric=false)", 10},
    {11, "quant(bits=12,per=token)"},
    {19, "quant(bits=12,per=channel,symmetric=false)", 12},
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

// Runs of whole groups from all over a block.
constexpr size_t kSampleRuns = 8;
constexpr size_t kSampleRunValues = 512;
constexpr size_t kSampleAlignment = 128;
constexpr size_t kMinSampledBlock = 4 * kSampleRuns * kSampleRunValues;
// A sample that misses by less than this may belong to a block that does not.
constexpr double kSampleSlack = 1.5;
// The same of errors that are foretold.
constexpr double kChannelSlack = 1.1;

void TakeSample(ByteSpan values, size_t width, Buffer& sample) {
  const size_t last = values.size() / width - kSampleRunValues;
  sample.Resize(kSampleRuns * kSampleRunValues * width);
  for (size_t run = 0; run < kSampleRuns; ++run) {
    const size_t begin = run * last / (kSampleRuns - 1) / kSampleAlignment * kSampleAlignment;
    std::memcpy(sample.data() + run * kSampleRunValues * width, values.data() + begin * width,
                kSampleRunValues * width);
  }
}

// The first values of a block, of which a largest error is looked at before all are encoded: the runs that give each
// channel a scale, twice, and so whole groups of all rungs. Their errors are the same as in the block, which has more
// such runs.
constexpr size_t kFirstRows = 128;
constexpr uint64_t kLeastRow = 32;  // shorter rows share scales
constexpr size_t kLeastParts = 4;   // that the block is longer

// What any scales without offsets leave of a block's errors at least, where values of binary32 are so small that it is
// something: all scales, and so what codes come to, are multiples of the smallest bfloat16.
ErrorSums LeastErrors(DType dtype, ByteSpan values) {
  ErrorSums least;
  if (dtype != DType::kF32) return least;
  const std::optional<float> largest = simd::LargestOfSmall(dtype, values.data(), values.size() / sizeof(float));
  // Of magnitudes below that the bits count the smallest numbers of binary32.
  if (!largest || *largest >= 0x1p-125f) return least;
  constexpr uint32_t kStep = 1 << 16;
  uint64_t squares = 0;
  for (size_t i = 0; i < values.size(); i += sizeof(float)) {
    const uint32_t above = LoadLE<uint32_t>(values.data() + i) % kStep;
    const uint64_t error = std::min(above, kStep - above);
    squares += error * error;
  }
  least.sum_error_squares = std::ldexp(static_cast<double>(squares), -2 * 149);
  return least;
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
  Pieces takes_pieces() const override { return Pieces::kOne; }

  absl::Status Encode(const Block& block, std::span<StreamBuffer> streams, ErrorSums* sums) const override {
    return EncodeWhole(block, streams, sums, nullptr);
  }

  absl::Status EncodePieces(const Block& block, std::span<StreamBuffer> streams, ErrorSums* sums,
                            simd::TokenMeter* tokens) const override {
    const Block whole{block.tensor, block.first, block.count, block.pieces[0], {}, block.tokens};
    return EncodeWhole(whole, streams, sums, tokens);
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

  absl::Status EncodeWhole(const Block& block, std::span<StreamBuffer> streams, ErrorSums* sums,
                           simd::TokenMeter* tokens) const {
    const ByteSpan values = block.values;
    Judge judge(allowance_, block);
    ErrorSums own;
    size_t chosen = codecs_.size() - 1;
    // What cannot be judged is kept as it is.
    if (judge.has_only_finite_values() && !values.empty()) {
      KVC_ASSIGN_OR_RETURN(chosen, Choose(block, judge, streams, own, tokens));
    }
    if (chosen == codecs_.size() - 1) {
      own = judge.sums();
      KVC_RETURN_IF_ERROR(codecs_.back()->Encode(block, Inner(streams, *codecs_.back()), nullptr));
      if (tokens != nullptr) {
        tokens->Begin(block.tokens.layout, block.tokens.first);
        simd::MeasureTokens(block.tensor.dtype, values.data(), values.data(), block.count, *tokens);
      }
    }
    const size_t unused = inner_streams_ - codecs_[chosen]->stream_count();
    for (StreamBuffer& stream : streams.subspan(1, unused)) stream.size = 0;
    streams[0].data[0] = std::byte{kLadder[chosen].mode};
    streams[0].size = 1;
    if (sums != nullptr) sums->Merge(own);
    return absl::OkStatus();
  }

  // Encodes with each rung below the last, the cheapest first, until one keeps the bounds; the last rung, of which
  // nothing is encoded, when none does.
  absl::StatusOr<size_t> Choose(const Block& block, Judge& judge, std::span<StreamBuffer> streams, ErrorSums& sums,
                                simd::TokenMeter* tokens) const {
    Scratch& scratch = ThreadScratch();
    const TensorDesc& tensor = block.tensor;
    const ByteSpan values = block.values;
    const size_t width = DTypeSize(tensor.dtype);
    const ErrorSums least = LeastErrors(tensor.dtype, values);
    const bool scales_miss = judge.Misses(least);
    const bool sampled = block.count >= kMinSampledBlock;
    if (sampled) TakeSample(values, width, scratch.sample);
    std::optional<ChannelNoise> noise;
    bool more_bits_help = true;  // to channels
    for (size_t i = 0; i + 1 < codecs_.size(); ++i) {
      const TensorCodec& codec = *codecs_[i];
      // Where a value has a byte, what takes as much or more is no better than the lossless rung.
      if (width == 1 && MostBytes(codec, tensor, values.size()) >= values.size()) continue;
      if (const int bits = kLadder[i].channel_bits; bits > 0) {
        if (!judge.looks_at_tokens() || !more_bits_help) continue;
        if (!noise) noise.emplace(tensor.dtype, tensor.shape.back(), values);
        if (noise->ErrorSquares(bits) > kChannelSlack * judge.ErrorSquares()) continue;
        more_bits_help = !noise->HasLeastScales(bits);
      } else if (scales_miss) {
        continue;
      } else if (sampled) {
        ErrorSums unused;
        KVC_ASSIGN_OR_RETURN(const bool kept, SomeKeep(codec, tensor, scratch.sample.span(), judge, unused));
        if (!kept) continue;
      }
      KVC_ASSIGN_OR_RETURN(const bool missed, FirstMiss(codec, block, judge, least));
      if (missed) continue;
      sums = {};
      KVC_ASSIGN_OR_RETURN(const bool kept, Keeps(codec, block, judge, 1, Inner(streams, codec), sums, tokens));
      if (kept) return i;
    }
    return codecs_.size() - 1;
  }

  // Whether some of a block's values keep the bounds, with some slack, if `codec` encodes them by themselves.
  static absl::StatusOr<bool> SomeKeep(const TensorCodec& codec, const TensorDesc& tensor, ByteSpan values,
                                       Judge& judge, ErrorSums& sums) {
    std::array<StreamBuffer, kMaxInnerStreams> room;
    const std::span<StreamBuffer> streams = std::span(room).first(codec.stream_count());
    const size_t count = values.size() / DTypeSize(tensor.dtype);
    PlaceStreams(codec, tensor, count, ThreadScratch(), streams);
    return Keeps(codec, {tensor, 0, count, values}, judge, kSampleSlack, streams, sums, nullptr);
  }

  // Whether the first values of a block tell that all of them miss a bound: for a largest error one value is enough,
  // and a part of them where scales make large errors of small values.
  absl::StatusOr<bool> FirstMiss(const TensorCodec& codec, const Block& block, Judge& judge,
                                 const ErrorSums& least) const {
    const bool may_tell = allowance_.looks_at_largest_error() || least.sum_error_squares > 0;
    if (!may_tell || block.tensor.shape.empty()) return false;
    const uint64_t row = block.tensor.shape.back();
    if (row < kLeastRow || row > block.count || row * kFirstRows * kLeastParts > block.count) return false;
    ErrorSums sums;
    const ByteSpan first = block.values.first(row * kFirstRows * DTypeSize(block.tensor.dtype));
    KVC_RETURN_IF_ERROR(SomeKeep(codec, block.tensor, first, judge, sums).status());
    return judge.Misses(sums);
  }

  static size_t MostBytes(const TensorCodec& codec, const TensorDesc& tensor, size_t count) {
    std::array<size_t, kMaxInnerStreams> bounds = {};
    codec.StreamBounds(tensor, count, std::span(bounds).first(codec.stream_count()));
    return std::accumulate(bounds.begin(), bounds.end(), size_t{0});
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

  // Encodes a block's values, all or some, with `codec`, adds the errors to `sums`, and asks the judge. `tokens`, if
  // not null, measures them.
  static absl::StatusOr<bool> Keeps(const TensorCodec& codec, const Block& block, Judge& judge, double slack,
                                    std::span<StreamBuffer> streams, ErrorSums& sums, simd::TokenMeter* tokens) {
    const DType dtype = block.tensor.dtype;
    const ByteSpan values = block.values;
    if (tokens != nullptr) tokens->Begin(block.tokens.layout, block.tokens.first);
    const Block pieces{block.tensor, block.first, block.count, {}, {&values, 1}, block.tokens};
    const bool measures = codec.takes_pieces() != Pieces::kNone;
    const absl::Status encoded =
        measures ? codec.EncodePieces(pieces, streams, &sums, tokens) : codec.Encode(block, streams, nullptr);
    if (absl::IsInvalidArgument(encoded)) return false;  // a value that it cannot hold
    KVC_RETURN_IF_ERROR(encoded);

    Buffer& decoded = ThreadScratch().decoded;
    decoded.Resize(values.size());
    absl::Status status;
    const auto decode = [&]() -> ByteSpan {
      std::array<ByteSpan, kMaxInnerStreams> in;
      for (size_t i = 0; i < streams.size(); ++i) in[i] = {streams[i].data, streams[i].size};
      status = codec.Decode(block.tensor, std::span(in).first(streams.size()), decoded.span());
      return decoded.span();
    };
    if (!measures) {
      decode();
      if (tokens != nullptr) {
        simd::MeasureTokens(dtype, values.data(), decoded.data(), block.count, *tokens);
        sums.Merge(tokens->sums());
      } else {
        simd::MeasureErrors(dtype, values.data(), decoded.data(), block.count, sums);
      }
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
                                          "bounded(min_snr=0,min_token_snr=25,max_error=0,min_cosine=0)",
                                          "bounded(min_snr=0,max_error=0,min_cosine=0.99)|zstd(level=1)"};
constexpr Parameter kParameters[] = {
    Parameter::Real("min_snr", 0, 0, 200,
                    "the tensor's signal-to-noise ratio, in dB, is at least this; its token SNR as well"),
    Parameter::Real("min_token_snr", 0, 0, 200, "the tensor's token SNR alone, or its SNR where it has no tokens")
        .LeftOut(),
    Parameter::Real("max_error", 0, 0, std::numeric_limits<float>::max(), "no value's error is above this"),
    Parameter::Real("min_cosine", 0, 0, 1, "the tensor's cosine similarity is at least this"),
};

absl::Status Check(const StageSpec& stage) {
  if (std::ranges::any_of(stage.values, [](double bound) { return bound > 0; })) return absl::OkStatus();
  return absl::InvalidArgumentError("bounded needs a bound above 0: min_snr, min_token_snr, max_error or min_cosine");
}

MadeCodec<TensorCodec> Make(const CodecArgs& args) {
  std::vector<std::unique_ptr<TensorCodec>> codecs;
  for (const ChainSpec& rung : Ladder()) {
    const StageSpec& stage = rung.tensor_codec();
    KVC_ASSIGN_OR_RETURN(auto codec, MakeTensorCodec({stage, args.environment, args.tensor}));
    if (codec->stream_count() > kMaxInnerStreams) return absl::InternalError("bounded: a rung has too many streams");
    codecs.push_back(std::move(codec));
  }
  const StageSpec& stage = args.stage;
  return std::make_unique<Bounded>(Bounds{.min_snr = stage.Number("min_snr"),
                                          .min_token_snr = stage.Number("min_token_snr"),
                                          .max_error = stage.Number("max_error"),
                                          .min_cosine = stage.Number("min_cosine")},
                                   std::move(codecs));
}

}  // namespace

extern constinit const CodecRow kBounded = {
    .name = "bounded",
    .summary =
        "for each block the smallest of intN, quant and lossless that keeps the bounds; 0: no bound; slow: it "
        "encodes at 1 to 2 GB/s",
    .parameters = kParameters,
    .examples = kExamples,
    .has_codecs = true,
    .check = Check,
    .make_tensor_codec = Make};

}  // namespace kvcompress
