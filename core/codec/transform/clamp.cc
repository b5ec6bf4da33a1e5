#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/base/half.h"
#include "core/codec/registry.h"
#include "core/simd/value_limits.h"

namespace kvcompress {
namespace {

// docs/format.md, "clamp": makes values that a lossy codec refuses acceptable. The decoder has nothing to undo.
class Clamp final : public TensorTransform {
 public:
  explicit Clamp(const StageSpec& stage) : limit_(stage.Number("limit")) {}

  bool lossless() const override { return false; }

  absl::Status Forward(const Block& block, const TensorState*, const std::function<size_t(size_t)>&, Buffer& values,
                       Buffer& side) const override {
    values.Resize(block.values.size());
    side.Resize(0);
    const DType dtype = block.tensor.dtype;
    const uint32_t limit = LimitOf(dtype);
    // Where an infinity lands: its group keeps a useful scale.
    const uint32_t largest = std::min(limit, simd::LargestFinite(dtype, block.values.data(), block.count));
    const bool has_infinity = simd::MaxFiniteBits(dtype) < InfinityBits(dtype);
    simd::ClampMagnitudes(dtype, block.values.data(), block.count, limit, has_infinity ? largest : limit,
                          values.data());
    return absl::OkStatus();
  }

 private:
  // The bits of the largest value of the dtype that is not above the limit.
  uint32_t LimitOf(DType dtype) const {
    const double limit = std::min(limit_, static_cast<double>(MaxFinite(dtype)));
    uint32_t bits = 0;
    StoreFromF32(dtype, static_cast<float>(limit), &bits, 0);
    if (static_cast<double>(LoadAsF32(dtype, &bits, 0)) > limit) --bits;
    return bits;
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
