#include <algorithm>
#include <array>
#include <cmath>

#include "core/base/status_macros.h"
#include "core/codec/magnitude.h"
#include "core/codec/registry.h"
#include "core/codec/transform/clip_bounds.h"
#include "core/simd/kept_values.h"

namespace kvcompress {
namespace {

// How a tensor's values lie: `finite` of them, with `below` that come before these in the order of the keys.
struct Census {
  uint64_t finite = 0;
  uint64_t below = 0;
};

absl::StatusOr<Census> CountFinite(const ByteSource& source, DType dtype, size_t block_elements) {
  const uint32_t most = simd::MaxFiniteBits(dtype);
  const auto key_of = [&](bool is_negative) {
    return VisitBits(dtype, [&](auto zero) -> uint32_t {
      using Bits = decltype(zero);
      return OrderKey(static_cast<Bits>(is_negative ? most | kSignBit<Bits> : most));
    });
  };
  simd::KeyCounts to_first(key_of(true), key_of(true), 0);
  simd::KeyCounts to_last(key_of(false), key_of(false), 0);
  Census census;
  Buffer mask;
  KVC_RETURN_IF_ERROR(ForEachBlock(source, dtype, block_elements, [&](const std::byte* values, size_t n) {
    mask.Resize((n + 7) / 8);
    if (simd::MarkMagnitudes(dtype, values, n, most + 1, mask.data()) == 0) {
      census.finite += n;
      return;
    }
    simd::CountKeys(simd::KeyOrder::kValue, dtype, values, n, to_first);
    simd::CountKeys(simd::KeyOrder::kValue, dtype, values, n, to_last);
  }));
  census.finite += to_last.below + to_last.at_lower - to_first.below;
  census.below = to_first.below;
  return census;
}

// docs/format.md, "clip_range".
class ClipRange final : public ClipToBounds {
 public:
  explicit ClipRange(const StageSpec& stage) : low_(stage.Number("low")), high_(stage.Number("high")) {}

  absl::StatusOr<std::unique_ptr<TensorState>> Analyze(const TensorDesc& tensor, const ByteSource& source,
                                                       size_t block_elements) const override {
    auto bounds = std::make_unique<ClipBounds>();
    KVC_ASSIGN_OR_RETURN(const Census census, CountFinite(source, tensor.dtype, block_elements));
    if (census.finite == 0) return bounds;
    const auto rank_of = [&](double percentile) {
      const double wanted = std::ceil(percentile * static_cast<double>(census.finite) / 100);
      return census.below + std::clamp<uint64_t>(static_cast<uint64_t>(wanted), 1, census.finite) - 1;
    };
    std::array<RankedKey, 2> ends = {RankedKey{rank_of(low_)}, RankedKey{rank_of(high_)}};
    KVC_RETURN_IF_ERROR(SelectKeys(source, tensor.dtype, block_elements, simd::KeyOrder::kValue, ends));
    bounds->lower = ends[0].key;
    bounds->upper = ends[1].key;
    return bounds;
  }

 private:
  double low_;
  double high_;
};

absl::Status CheckRange(const StageSpec& stage) {
  if (stage.Number("low") <= stage.Number("high")) return absl::OkStatus();
  return absl::InvalidArgumentError("clip_range: low is above high");
}

constexpr std::string_view kRangeExamples[] = {"clip_range(low=1,high=99)|int4(group=64)",
                                               "clip_range(low=0,high=99.9)|raw"};
constexpr Parameter kRangeParameters[] = {
    Parameter::Real("low", 1, 0, 100, "of the finite values, sorted, this percentile is the least that stays"),
    Parameter::Real("high", 99, 0, 100, "and this one the largest")};

}  // namespace

extern constinit const CodecRow kClipRange = {
    .name = "clip_range",
    .summary = "values outside of two percentiles of the tensor saturate; it encodes at 2 to 2.5 GB/s",
    .parameters = kRangeParameters,
    .examples = kRangeExamples,
    .needs_tensor = NeedsTensor,
    .check = CheckRange,
    .make_transform = Make<TensorTransform, ClipRange>};

}  // namespace kvcompress
