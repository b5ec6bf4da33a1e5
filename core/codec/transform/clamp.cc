#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/base/half.h"
#include "core/codec/registry.h"

namespace kvcompress {
namespace {

// docs/format.md, "clamp": makes values that a lossy codec refuses acceptable. The decoder has nothing to undo.
class Clamp final : public TensorTransform {
 public:
  explicit Clamp(const StageSpec& stage) : limit_(stage.Number("limit")) {}

  bool lossless() const override { return false; }

  absl::Status Forward(const Block& block, const TensorState*, const std::function<size_t(size_t)>&, Buffer& values,
                       Buffer& side) const override {
    const DType dtype = block.tensor.dtype;
    values.Resize(block.values.size());
    if (!block.values.empty()) std::memcpy(values.data(), block.values.data(), block.values.size());
    side.Resize(0);
    const float limit = LimitOf(dtype);
    float largest = 0;  // finite magnitude of the block, where an infinity lands: its group keeps a useful scale
    for (size_t i = 0; i < block.count; ++i) {
      const float magnitude = std::fabs(LoadAsF32(dtype, values.data(), i));
      if (std::isfinite(magnitude)) largest = std::max(largest, std::min(magnitude, limit));
    }
    for (size_t i = 0; i < block.count; ++i) {
      const float value = LoadAsF32(dtype, values.data(), i);
      if (std::isnan(value)) {
        StoreFromF32(dtype, 0, values.data(), i);
      } else if (std::fabs(value) > limit) {
        const float bound = std::isinf(value) ? largest : limit;
        StoreFromF32(dtype, std::copysign(bound, value), values.data(), i);
      }
    }
    return absl::OkStatus();
  }

 private:
  // The largest value of the dtype that is not above the limit.
  float LimitOf(DType dtype) const {
    if (limit_ >= static_cast<double>(MaxFinite(dtype))) return MaxFinite(dtype);
    uint32_t bits = 0;
    StoreFromF32(dtype, static_cast<float>(limit_), &bits, 0);
    if (static_cast<double>(LoadAsF32(dtype, &bits, 0)) > limit_) --bits;
    return LoadAsF32(dtype, &bits, 0);
  }

  double limit_;
};

constexpr std::string_view kExamples[] = {"clamp(limit=65504)|int4(group=64)"};
constexpr Parameter kParameters[] = {
    Parameter::Real("limit", 65504, 0, std::numeric_limits<float>::max(), "the largest magnitude that stays")};

}  // namespace

extern constinit const CodecRow kClamp =
    RowOf<Clamp>("clamp", "NaN becomes 0, infinities and values above the limit saturate", kExamples, kParameters);

}  // namespace kvcompress
