#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"
#include "core/codec/registry.h"
#include "core/codec/tensor/transform_block.h"
#include "core/codec/tensor/transform_search.h"
#include "core/simd/group_quant.h"

namespace kvcompress {
namespace {

struct Found final : TensorState {
  explicit Found(float of_tensor) : step(of_tensor) {}
  const float step;
};

// docs/format.md, "transform". Streams: side information, and the words of the entropy coder.
class Transform final : public TensorCodec {
 public:
  explicit Transform(const StageSpec& stage)
      : target_{stage.Number("bits"), stage.Number("snr")},
        step_(static_cast<float>(stage.Number("step"))),
        sinks_(stage.Flag("sinks")),
        format_{.trellis = stage.Flag("trellis"),
                .theta = stage.Number("theta"),
                .pairs = stage.Choice<simd::RotaryPairs>("rotary"),
                .rotary_dims = static_cast<size_t>(stage.Int("rotary_dims")),
                .rotary_offset = static_cast<size_t>(stage.Int("rotary_offset")),
                .start = static_cast<uint64_t>(stage.Int("start"))} {}

  bool lossless() const override { return false; }
  float max_magnitude() const override { return kMaxTransformable; }
  size_t stream_count() const override { return 2; }
  void StreamBounds(const TensorDesc& tensor, size_t count, std::span<size_t> bounds) const override {
    bounds[0] = MaxSideBytes(count, DTypeSize(tensor.dtype));
    bounds[1] = MaxWordBytes(count, DTypeSize(tensor.dtype));
  }

  uint32_t BlockElements(const TensorDesc& tensor) const override { return TransformBlockElements(tensor); }

  absl::StatusOr<std::unique_ptr<TensorState>> Analyze(const TensorDesc& tensor, const ByteSource& values,
                                                       size_t block_elements) const override {
    KVC_ASSIGN_OR_RETURN(const float step, FindStep(format_, sinks_, target_, tensor, values, block_elements));
    return std::make_unique<Found>(step);
  }

  absl::Status Encode(const Block& block, std::span<StreamBuffer> streams, ErrorSums*) const override {
    const DType dtype = block.tensor.dtype;
    if (simd::FindOutOfRange(dtype, block.values.data(), block.count, kMaxTransformable) < block.count) {
      return absl::InvalidArgumentError("");
    }
    const float step = block.state != nullptr ? static_cast<const Found*>(block.state)->step : step_;
    const TransformInput input{dtype, LayoutOf(block.tensor, block.tokens, block.count), block.count,
                               block.values.data()};
    const TransformSizes sizes = EncodeTransform(format_, sinks_, step, input, streams[0].data, streams[1].data);
    streams[0].size = sizes.side;
    streams[1].size = sizes.words;
    return absl::OkStatus();
  }

  absl::Status Decode(const TensorDesc& tensor, std::span<const ByteSpan> streams,
                      MutableByteSpan values) const override {
    return DecodeTransform(format_, tensor.dtype, streams[0], streams[1], values);
  }

 private:
  const TransformTarget target_;
  const float step_;
  const bool sinks_;
  const TransformFormat format_;
};

constexpr std::string_view kExamples[] = {"transform(bits=3)",
                                          "transform(bits=4,theta=10000)",
                                          "transform(snr=20,theta=500000,rotary=interleaved,start=256)",
                                          "transform(step=0.05,trellis=false)",
                                          "transform(step=0.25,sinks=false)|zstd(level=1)",
                                          "transform(bits=2.5,theta=1000000,rotary_dims=64,rotary_offset=512)"};
constexpr Parameter kParameters[] = {
    Parameter::Real("bits", 0, 0, 32, "of a value, at most, all that a frame has included: the step follows").LeftOut(),
    Parameter::Real("snr", 0, 0, 150, "in dB, at least: the step follows").LeftOut(),
    Parameter::Real("step", 0, 0, 1e30, "the distance of neighbouring values that can be decoded").LeftOut(),
    Parameter::Flag("trellis", true, "quantize with the trellis: 0.13 bits less, slower").LeftOut(),
    Parameter::Flag("sinks", true, "finer steps for the first four tokens of a sequence").LeftOut(),
    Parameter::Real("theta", 0, 0, 1e15, "base of the rotary embedding that is undone; 0: none").LeftOut(),
    Parameter::Word("rotary", 0, "half|interleaved", "which channels of a head turn together").LeftOut(),
    Parameter::Integer("rotary_dims", 0, 0, 65536, "channels of a head that turn; 0: all from rotary_offset on")
        .LeftOut(),
    Parameter::Integer("rotary_offset", 0, 0, 65535, "the first of them").LeftOut(),
    Parameter::Integer("start", 0, 0, 1e15, "position of a sequence's first token").LeftOut(),
};

absl::Status Check(const StageSpec& stage) {
  const int targets = (stage.Number("bits") > 0) + (stage.Number("snr") > 0) + (stage.Number("step") > 0);
  if (targets != 1) return absl::InvalidArgumentError("transform: give one of bits, snr and step, above 0");
  const double step = stage.Number("step");
  if (step > 0 && step < kMinStep) return absl::InvalidArgumentError("transform: step is below 2^-100");
  const double theta = stage.Number("theta");
  if (theta > 0 && theta < 1) return absl::InvalidArgumentError("transform: theta is below 1");
  if (stage.Int("rotary_dims") % 2 != 0) return absl::InvalidArgumentError("transform: rotary_dims is odd");
  return absl::OkStatus();
}

bool FindsStep(const StageSpec& stage) { return stage.Number("step") == 0; }

}  // namespace

extern constinit const CodecRow kTransform = {
    .name = "transform",
    .summary =
        "keys and values as attention sees them: rotary undone, means removed, trellis quantization, entropy "
        "coding; few bits",
    .parameters = kParameters,
    .examples = kExamples,
    .needs_tensor = FindsStep,
    .check = Check,
    .make_tensor_codec = Make<TensorCodec, Transform>};

}  // namespace kvcompress
