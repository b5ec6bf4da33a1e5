#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "core/artifact/artifact_store.h"
#include "core/base/buffer.h"
#include "core/base/elementary.h"
#include "core/base/status_macros.h"
#include "core/codec/registry.h"
#include "core/codec/rotary_parameters.h"
#include "core/codec/tensor/transform/basis.h"
#include "core/codec/tensor/transform/block.h"
#include "core/codec/tensor/transform/search.h"
#include "core/simd/error_sums.h"
#include "core/simd/token_meter.h"

namespace kvcompress {
namespace {

struct Found final : TensorState {
  explicit Found(FoundStep found) : of_tensor(std::move(found)) {}
  const FoundStep of_tensor;
};

// docs/format.md, "transform". Streams: side information, and the words of the entropy coder.
class Transform final : public TensorCodec {
 public:
  Transform(const StageSpec& stage, std::shared_ptr<const Artifact> artifact)
      : digest_(stage.digest),
        target_{stage.Number("bits"), stage.Number("snr")},
        step_(static_cast<float>(stage.Number("step"))),
        sinks_(stage.Flag("sinks")),
        format_{.trellis = stage.Flag("trellis"),
                .rotary = RotaryOf(stage),
                .artifact = std::move(artifact),
                .ranks = stage.list} {
    if (format_.artifact == nullptr || !format_.artifact->rotary) return;
    const uint64_t start = format_.rotary.start;
    format_.rotary = *format_.artifact->rotary;
    format_.rotary.start = start;
  }

  bool lossless() const override { return false; }
  float max_magnitude() const override { return kMaxTransformable; }
  size_t stream_count() const override { return 2; }
  void StreamBounds(const TensorDesc& tensor, size_t count, std::span<size_t> bounds) const override {
    bounds[0] = MaxSideBytes(count, DTypeSize(tensor.dtype));
    bounds[1] = MaxWordBytes(count, DTypeSize(tensor.dtype));
  }

  uint32_t BlockElements(const TensorDesc& tensor) const override {
    return digest_.empty() ? TransformBlockElements(tensor) : BasisBlockElements(tensor);
  }

  absl::StatusOr<std::unique_ptr<TensorState>> Analyze(const TensorDesc& tensor, const ByteSource& values,
                                                       size_t block_elements) const override {
    KVC_RETURN_IF_ERROR(CheckArtifact());
    TransformTarget target = target_;
    if (target.bits > 0 && format_.artifact != nullptr) {
      target.bits = ShareOfBits(*format_.artifact, tensor, target.bits);
    }
    KVC_ASSIGN_OR_RETURN(FoundStep found, FindStep(format_, sinks_, target, tensor, values, block_elements));
    return std::make_unique<Found>(std::move(found));
  }

  bool measures() const override { return true; }
  Pieces takes_pieces() const override { return Pieces::kOne; }

  absl::Status Encode(const Block& block, std::span<StreamBuffer> streams, ErrorSums* sums) const override {
    return EncodeValues(block, block.values, streams, sums, nullptr);
  }

  absl::Status EncodePieces(const Block& block, std::span<StreamBuffer> streams, ErrorSums* sums,
                            simd::TokenMeter* tokens) const override {
    return EncodeValues(block, block.pieces[0], streams, sums, tokens);
  }

  absl::Status Decode(const TensorDesc& tensor, std::span<const ByteSpan> streams,
                      MutableByteSpan values) const override {
    KVC_RETURN_IF_ERROR(CheckArtifact());
    return DecodeTransform(format_, tensor.dtype, streams[0], streams[1], values);
  }

 private:
  absl::Status EncodeValues(const Block& block, ByteSpan values, std::span<StreamBuffer> streams, ErrorSums* sums,
                            simd::TokenMeter* tokens) const {
    KVC_RETURN_IF_ERROR(CheckArtifact());
    const DType dtype = block.tensor.dtype;
    const TransformInput input{dtype, LayoutOf(format_, block.tensor, block.tokens, block.count), block.count,
                               values.data()};
    thread_local Buffer decoded;
    if (sums != nullptr) decoded.Resize(values.size());
    if (!format_.ranks.empty() && input.layout.arrangement == 0 && input.count > 0) {
      return absl::InvalidArgumentError(
          "transform: ranks need to know which heads these are: a tensor named layer_{i}_key or layer_{i}_value");
    }
    if (!EncodeWithin(block, input, streams, sums != nullptr ? decoded.data() : nullptr)) {
      return absl::InvalidArgumentError("");
    }
    if (tokens != nullptr) {
      simd::MeasureTokens(dtype, values.data(), decoded.data(), block.count, *tokens);
      sums->Merge(tokens->sums());
    } else if (sums != nullptr) {
      simd::MeasureErrors(dtype, values.data(), decoded.data(), block.count, *sums);
    }
    return absl::OkStatus();
  }

  // With the tensor's step, or a larger one where that takes more than the block may. False where a value is refused.
  bool EncodeWithin(const Block& block, const TransformInput& input, std::span<StreamBuffer> streams,
                    std::byte* decoded) const {
    const FoundStep given{step_ * SegmentBasis(format_.artifact.get(), input.layout).step(), 1, {}};
    const FoundStep& found = block.state != nullptr ? static_cast<const Found*>(block.state)->of_tensor : given;
    const size_t most = found.MostBytes(block.first);
    float least = found.step;  // of the steps that make a difference
    double octaves = 0;
    constexpr int kTrials = 8;
    for (int i = 1;; ++i) {
      const auto step = static_cast<float>(double{least} * Exp2(octaves));
      const auto sizes = EncodeTransform(format_, sinks_, step, input, streams[0].data, streams[1].data, decoded);
      if (!sizes) return false;
      streams[0].size = sizes->side;
      streams[1].size = sizes->words;
      const size_t bytes = sizes->side + sizes->words;
      if (bytes <= most || i == kTrials) {
        if (block.rotary != nullptr) block.rotary->Merge(sizes->rotary);
        return true;
      }
      if (i == 1) least = std::max(least, sizes->step);
      // A bit less of each value for each octave; at few bits, less than one.
      const double excess = 8 * static_cast<double>(bytes - most) / static_cast<double>(input.count);
      octaves += std::min(excess * (1 << (i / 2)) + 0.002 * i, 4.0);
    }
  }

  absl::Status CheckArtifact() const {
    if (digest_.empty() || format_.artifact != nullptr) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrFormat("transform: artifact %s: this program was given no directory of artifacts", digest_));
  }

  const std::string digest_;  // of the artifact that the spec names
  const TransformTarget target_;
  const float step_;
  const bool sinks_;
  TransformFormat format_;
};

// Without a store the codec can be asked about sizes, but neither encodes nor decodes.
MadeCodec<TensorCodec> MakeTransform(const CodecArgs& args) {
  std::shared_ptr<const Artifact> artifact;
  if (!args.stage.digest.empty() && args.environment.artifacts != nullptr) {
    KVC_ASSIGN_OR_RETURN(artifact, args.environment.artifacts->Find(args.stage.digest));
    KVC_RETURN_IF_ERROR(CheckFit(*artifact, args.tensor));
    if (!args.stage.list.empty()) KVC_RETURN_IF_ERROR(CheckRanks(*artifact, args.stage.list));
  }
  return std::make_unique<Transform>(args.stage, std::move(artifact));
}

constexpr std::string_view kExamples[] = {
    "transform(bits=3)",
    "transform(bits=4,theta=10000)",
    "transform(snr=20,theta=500000,rotary=interleaved,start=256)",
    "transform(step=0.05,trellis=false)",
    "transform(step=0.25,sinks=false)|zstd(level=1)",
    "transform(bits=2.5,theta=1000000,rotary_dims=64,rotary_offset=512)",
    "transform(bits=3,theta=500000,scaling=llama3,factor=8)",
    "transform(step=0.1,theta=1000000,scaling=yarn,factor=4,low=2,high=24,original=32768)"};
constexpr Parameter kParameters[] = {
    Parameter::Real(
        "bits", 0, 0, 32,
        "of a value, at most, all that a frame has included: the step follows; or snr, or step; with an artifact "
        "that knows what errors cost, the mean of its tensors; values beyond 10^30 take more, as no step is above 5e30")
        .LeftOut(),
    Parameter::Real(
        "snr", 0, 0, 150,
        "in dB, at least, the token SNR as well: the step follows; where none reaches it, values are stored")
        .LeftOut(),
    Parameter::Real("step", 0, 0, 1e30, "the distance of neighbouring values that can be decoded").LeftOut(),
    Parameter::Flag("trellis", true, "quantize with the trellis: 0.13 bits less, slower").LeftOut(),
    Parameter::Flag("sinks", true, "finer steps for the first four tokens of a sequence").LeftOut(),
    rotary_parameters::kTheta,
    rotary_parameters::kPairs,
    Parameter::Integer("rotary_dims", 0, 0, 65536, "channels of a head that turn; 0: all from rotary_offset on")
        .LeftOut(),
    Parameter::Integer("rotary_offset", 0, 0, 65535, "the first of them").LeftOut(),
    rotary_parameters::kStart,
    rotary_parameters::kScaling,
    rotary_parameters::kFactor,
    rotary_parameters::kLow,
    rotary_parameters::kHigh,
    rotary_parameters::kOriginal,
    Parameter::Digest("artifact", "id of what calibration learned of the model, also of its rotary embedding"),
    Parameter::List(
        "ranks", 1, kMaxGroupDim,
        "how many of a head's coefficients in the artifact are kept, the first ones, one number for all "
        "heads or one for each; the others become zeros, but for the tokens that `sinks` gives finer steps"),
};

absl::Status Check(const StageSpec& stage) {
  const int targets = (stage.Number("bits") > 0) + (stage.Number("snr") > 0) + (stage.Number("step") > 0);
  if (targets != 1) return absl::InvalidArgumentError("transform: give one of bits, snr and step, above 0");
  if (!stage.digest.empty()) {
    for (const std::string_view of_artifact : {"theta", "rotary", "rotary_dims", "rotary_offset", "scaling"}) {
      if (stage.Number(of_artifact) == 0) continue;
      return absl::InvalidArgumentError(absl::StrFormat("transform: the artifact says %s: leave it out", of_artifact));
    }
  }
  if (stage.digest.empty() && !stage.list.empty()) {
    return absl::InvalidArgumentError("transform: ranks are of coefficients in an artifact: give its id, artifact=ID");
  }
  const double step = stage.Number("step");
  if (step > 0 && step < kMinStep) return absl::InvalidArgumentError("transform: step is below 2^-100");
  if (stage.Int("rotary_dims") % 2 != 0) return absl::InvalidArgumentError("transform: rotary_dims is odd");
  return CheckRotaryOf(stage);
}

bool FindsStep(const StageSpec& stage) { return stage.Number("step") == 0; }

}  // namespace

extern constinit const CodecRow kTransform = {
    .name = "transform",
    .summary =
        "keys and values as attention sees them: rotary undone, means removed, trellis quantization, entropy "
        "coding; few bits, and slow: it encodes at a tenth of int4's speed, at a fortieth where it searches for an "
        "SNR, "
        "and decodes at a twentieth",
    .parameters = kParameters,
    .examples = kExamples,
    .needs_tensor = FindsStep,
    .has_compact_frames = true,
    .check = Check,
    .make_tensor_codec = MakeTransform};

}  // namespace kvcompress
