#include <cmath>
#include <cstring>

#include "absl/strings/str_format.h"
#include "core/base/half.h"
#include "core/codec/registry.h"

namespace kvcompress {
namespace {

enum class To { kF16, kBF16 };

// docs/format.md, "cast": F32 values become those of a type of 16 bits, which lossless codecs behind it need not keep
// more of. The decoder has nothing to undo.
class Cast final : public TensorTransform {
 public:
  Cast(To to, DType from) : to_(to == To::kF16 ? DType::kF16 : DType::kBF16), casts_(from == DType::kF32) {}

  bool lossless() const override { return !casts_; }

  absl::Status Forward(const Block& block, const TensorState*, const std::function<size_t(size_t)>&, Buffer& values,
                       Buffer& side) const override {
    values.Resize(block.values.size());
    side.Resize(0);
    if (!block.values.empty()) std::memcpy(values.data(), block.values.data(), block.values.size());
    for (size_t i = 0; casts_ && i < block.count; ++i) {
      const float x = LoadAsF32(DType::kF32, values.data(), i);
      if (!std::isfinite(x)) continue;
      const float y = RoundTo(to_, x);
      if (!std::isfinite(y)) return TooLarge(block.tensor, x);
      StoreFromF32(DType::kF32, y, values.data(), i);
    }
    return absl::OkStatus();
  }

 private:
  absl::Status TooLarge(const TensorDesc& tensor, float x) const {
    return OfTensor(tensor.name,
                    absl::InvalidArgumentError(absl::StrFormat(
                        "%g is too large for %s (%s)", x, DTypeName(to_),
                        to_ == DType::kF16 ? "use cast(to=bf16), or put clamp in front" : "put clamp in front")));
  }

  const DType to_;
  const bool casts_;
};

MadeCodec<TensorTransform> MakeCast(const CodecArgs& args) {
  return std::make_unique<Cast>(static_cast<To>(args.stage.Number("to")), args.tensor.dtype);
}

constexpr std::string_view kExamples[] = {"cast(to=bf16)|planes(split=auto,delta=auto)|rans",
                                          "clamp|cast(to=f16)|planes|rans"};
constexpr Parameter kParameters[] = {Parameter::Word("to", 0, "f16|bf16", "the type whose values stay")};

}  // namespace

extern constinit const CodecRow kCast = {.name = "cast",
                                         .summary = "F32 values are rounded to those of a type of 16 bits",
                                         .parameters = kParameters,
                                         .examples = kExamples,
                                         .make_transform = MakeCast};

}  // namespace kvcompress
