#include <algorithm>
#include <cmath>
#include <vector>

#include "core/base/half.h"
#include "core/base/status_macros.h"
#include "core/codec/magnitude.h"
#include "core/codec/registry.h"
#include "core/codec/transform/value_bits.h"

namespace kvcompress {
namespace {

// What stays, as order keys; everything where the tensor has no finite value.
class Bounds final : public TensorState {
 public:
  uint32_t lower = 0;
  uint32_t upper = ~uint32_t{0};
};

// Values outside of bounds of the whole tensor become these; NaN stays. The decoder has nothing to undo.
class ClipToBounds : public TensorTransform {
 public:
  bool lossless() const final { return false; }

  absl::Status Forward(const Block& block, const TensorState* state, const std::function<size_t(size_t)>&,
                       Buffer& values, Buffer& side) const final {
    const auto& bounds = *static_cast<const Bounds*>(state);
    LimitEach(block, bounds.lower, bounds.upper, values, side);
    return absl::OkStatus();
  }

  bool KeepsZero(DType dtype, const TensorState* state) const final {
    const auto& bounds = *static_cast<const Bounds*>(state);
    const auto zero = VisitBits(dtype, [](auto bits) -> uint32_t { return OrderKey(bits); });
    return bounds.lower <= zero && zero <= bounds.upper;
  }
};

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
  KVC_RETURN_IF_ERROR(ForEachBlock(source, dtype, block_elements, [&](const std::byte* values, size_t n) {
    simd::CountKeys(simd::KeyOrder::kValue, dtype, values, n, to_first);
    simd::CountKeys(simd::KeyOrder::kValue, dtype, values, n, to_last);
  }));
  return Census{.finite = to_last.below + to_last.at_lower - to_first.below, .below = to_first.below};
}

// docs/format.md, "clip_range".
class ClipRange final : public ClipToBounds {
 public:
  explicit ClipRange(const StageSpec& stage) : low_(stage.Number("low")), high_(stage.Number("high")) {}

  absl::StatusOr<std::unique_ptr<TensorState>> Analyze(const TensorDesc& tensor, const ByteSource& source,
                                                       size_t block_elements) const override {
    auto bounds = std::make_unique<Bounds>();
    KVC_ASSIGN_OR_RETURN(const Census census, CountFinite(source, tensor.dtype, block_elements));
    if (census.finite == 0) return bounds;
    const auto select = [&](double percentile, uint32_t& key) {
      const double wanted = std::ceil(percentile * static_cast<double>(census.finite) / 100);
      uint64_t rank = census.below + std::clamp<uint64_t>(static_cast<uint64_t>(wanted), 1, census.finite) - 1;
      return SelectKey(source, tensor.dtype, block_elements, simd::KeyOrder::kValue, rank, key);
    };
    KVC_RETURN_IF_ERROR(select(low_, bounds->lower));
    KVC_RETURN_IF_ERROR(select(high_, bounds->upper));
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

// docs/format.md, "clip_sigma".
class ClipSigma final : public ClipToBounds {
 public:
  explicit ClipSigma(const StageSpec& stage) : sigma_(stage.Number("sigma")) {}

  absl::StatusOr<std::unique_ptr<TensorState>> Analyze(const TensorDesc& tensor, const ByteSource& source,
                                                       size_t block_elements) const override {
    const DType dtype = tensor.dtype;
    auto bounds = std::make_unique<Bounds>();
    uint64_t finite = 0;
    double sum = 0;
    const auto for_each = [&](auto visit) {
      return ForEachBlock(source, dtype, block_elements, [&](const std::byte* values, size_t n) {
        for (size_t i = 0; i < n; ++i) {
          const float x = LoadAsF32(dtype, values, i);
          if (std::isfinite(x)) visit(static_cast<double>(x));
        }
      });
    };
    KVC_RETURN_IF_ERROR(for_each([&](double x) {
      sum += x;
      ++finite;
    }));
    if (finite == 0) return bounds;
    const double mean = sum / static_cast<double>(finite);
    double squares = 0;
    KVC_RETURN_IF_ERROR(for_each([&](double x) { squares += (x - mean) * (x - mean); }));
    const double reach = sigma_ * std::sqrt(squares / static_cast<double>(finite));
    bounds->lower = KeyOf(dtype, mean - reach);
    bounds->upper = KeyOf(dtype, mean + reach);
    return bounds;
  }

 private:
  static uint32_t KeyOf(DType dtype, double bound) {
    const auto most = static_cast<double>(MaxFinite(dtype));
    uint32_t bits = 0;
    StoreFromF32(dtype, static_cast<float>(std::clamp(bound, -most, most)), &bits, 0);
    return VisitBits(dtype, [&](auto zero) -> uint32_t { return OrderKey(static_cast<decltype(zero)>(bits)); });
  }

  double sigma_;
};

constexpr std::string_view kRangeExamples[] = {"clip_range(low=1,high=99)|int4(group=64)",
                                               "clip_range(low=0,high=99.9)|raw"};
constexpr Parameter kRangeParameters[] = {
    Parameter::Real("low", 1, 0, 100, "of the finite values, sorted, this percentile is the least that stays"),
    Parameter::Real("high", 99, 0, 100, "and this one the largest")};

constexpr std::string_view kSigmaExamples[] = {"clip_sigma(sigma=3)|int4(group=64)"};
constexpr Parameter kSigmaParameters[] = {
    Parameter::Real("sigma", 3, 0, 1000, "standard deviations from the mean, within which values stay")};

}  // namespace

extern constinit const CodecRow kClipRange = {.name = "clip_range",
                                              .summary = "values outside of two percentiles of the tensor saturate",
                                              .parameters = kRangeParameters,
                                              .examples = kRangeExamples,
                                              .needs_tensor = NeedsTensor,
                                              .check = CheckRange,
                                              .make_transform = Make<TensorTransform, ClipRange>};

extern constinit const CodecRow kClipSigma = {
    .name = "clip_sigma",
    .summary = "values that are too many deviations from the tensor's mean saturate",
    .parameters = kSigmaParameters,
    .examples = kSigmaExamples,
    .needs_tensor = NeedsTensor,
    .make_transform = Make<TensorTransform, ClipSigma>};

}  // namespace kvcompress
