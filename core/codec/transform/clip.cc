#include <algorithm>
#include <cmath>

#include "core/base/status_macros.h"
#include "core/codec/magnitude.h"
#include "core/codec/registry.h"
#include "core/codec/transform/value_bits.h"

namespace kvcompress {
namespace {

class ClipState final : public TensorState {
 public:
  uint32_t limit = 0;  // the key of the largest magnitude that stays
};

// docs/format.md, "clip": saturates values above a percentile of the tensor's magnitudes. The decoder has nothing to
// undo.
class Clip final : public TensorTransform {
 public:
  explicit Clip(const StageSpec& stage) : percentile_(stage.Number("percentile")) {}

  bool lossless() const override { return false; }

  absl::StatusOr<std::unique_ptr<TensorState>> Analyze(const TensorDesc& tensor, const ByteSource& source,
                                                       size_t block_elements) const override {
    auto state = std::make_unique<ClipState>();
    const uint64_t count = source.size() / DTypeSize(tensor.dtype);
    if (count == 0) return state;
    const double wanted = std::ceil(percentile_ * static_cast<double>(count) / 100);
    uint64_t rank = std::clamp<uint64_t>(static_cast<uint64_t>(wanted), 1, count) - 1;
    KVC_RETURN_IF_ERROR(
        SelectKey(source, tensor.dtype, block_elements, simd::KeyOrder::kMagnitude, rank, state->limit));
    return state;
  }

  absl::Status Forward(const Block& block, const TensorState* tensor_state, const std::function<size_t(size_t)>&,
                       Buffer& values, Buffer& side) const override {
    const uint32_t limit = static_cast<const ClipState*>(tensor_state)->limit;
    const auto key_of = [&](uint32_t sign) {
      return VisitBits(block.tensor.dtype, [&](auto zero) -> uint32_t {
        using Bits = decltype(zero);
        return OrderKey(static_cast<Bits>(limit | sign * kSignBit<Bits>));
      });
    };
    LimitEach(block, key_of(1), key_of(0), values, side);
    return absl::OkStatus();
  }

 private:
  double percentile_;
};

constexpr std::string_view kExamples[] = {"clip(percentile=99.9)|int4(group=64)", "clip(percentile=50)|raw"};
constexpr Parameter kParameters[] = {
    Parameter::Real("percentile", 99.9, 0, 100, "of the magnitudes, those up to it stay")};

}  // namespace

extern constinit const CodecRow kClip = {.name = "clip",
                                         .summary = "values above a percentile of the tensor's magnitudes saturate",
                                         .parameters = kParameters,
                                         .examples = kExamples,
                                         .needs_tensor = NeedsTensor,
                                         .make_transform = Make<TensorTransform, Clip>};

}  // namespace kvcompress
