#include <algorithm>

#include "core/codec/registry.h"
#include "core/codec/transform/value_bits.h"

namespace kvcompress {
namespace {

// docs/format.md, "truncate": mantissas lose their lower bits, which lossless codecs behind it then need not keep. The
// decoder has nothing to undo.
class Truncate final : public TensorTransform {
 public:
  Truncate(const StageSpec& stage, DType dtype)
      : dropped_(MantissaBits(dtype) - std::min(MantissaBits(dtype), static_cast<unsigned>(stage.Number("mantissa")))) {
  }

  bool lossless() const override { return dropped_ == 0; }

  absl::Status Forward(const Block& block, const TensorState*, const std::function<size_t(size_t)>&, Buffer& values,
                       Buffer& side) const override {
    // What makes a NaN one may stand in the lower bits alone.
    const uint32_t kept = ~uint32_t{0} << dropped_;
    ChangeEach(block, values, side, [kept](auto bits) { return static_cast<decltype(bits)>(bits & kept); });
    return absl::OkStatus();
  }

 private:
  const unsigned dropped_;
};

MadeCodec<TensorTransform> MakeTruncate(const CodecArgs& args) {
  return std::make_unique<Truncate>(args.stage, args.tensor.dtype);
}

constexpr std::string_view kExamples[] = {"truncate(mantissa=6)|planes(split=auto,delta=auto)|rans",
                                          "truncate(mantissa=2)|int8(group=64)"};
constexpr Parameter kParameters[] = {Parameter::Integer("mantissa", 6, 0, 23, "bits of the mantissa that stay")};

}  // namespace

extern constinit const CodecRow kTruncate = {.name = "truncate",
                                             .summary = "mantissas keep their upper bits alone, rounded toward zero",
                                             .parameters = kParameters,
                                             .examples = kExamples,
                                             .make_transform = MakeTruncate};

}  // namespace kvcompress
