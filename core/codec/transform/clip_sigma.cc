#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "core/base/half.h"
#include "core/base/status_macros.h"
#include "core/codec/magnitude.h"
#include "core/codec/registry.h"
#include "core/codec/transform/clip_bounds.h"
#include "core/simd/value_moments.h"

namespace kvcompress {
namespace {

// Between which numbers a bound lies, in whatever order its sums are added up.
struct Interval {
  double least, most;
};

struct Enclosure {
  Interval lower, upper;
};

// The bounds at `sigma` deviations from the mean. Of n terms each sum is off by less than n times the rounding of the
// sum of their magnitudes, of those here as of those that docs/format.md has in the values' order; what else is rounded
// is little beside the fourfold of it.
Enclosure Enclose(const simd::Moments& moments, double sigma) {
  const auto n = static_cast<double>(moments.count);
  const double rounding = 4 * (n + 16) * 0x1p-53;
  const double shift = moments.sum / n;
  const double squares = moments.squares / n;  // about the center
  const double mean = double{moments.center} + shift;
  const double mean_doubt = rounding * (std::abs(double{moments.center}) + std::sqrt(squares));
  const double variance = squares - shift * shift;
  const double doubt = rounding * squares + mean_doubt * mean_doubt;
  const double least = sigma * std::sqrt(std::max(0.0, variance - doubt)) * (1 - rounding);
  const double most = sigma * std::sqrt(std::max(0.0, variance + doubt)) * (1 + rounding);
  const double slack = mean_doubt + rounding * (std::abs(mean) + most);
  return {.lower = {mean - most - slack, mean - least + slack}, .upper = {mean + least - slack, mean + most + slack}};
}

// docs/format.md, "clip_sigma". That asks for sums in the values' order, where each addition waits for the one before
// it. The bounds are rounded to the dtype, and nearly always the same for all that such sums can come to: then sums in
// any order tell them.
class ClipSigma final : public ClipToBounds {
 public:
  explicit ClipSigma(const StageSpec& stage) : sigma_(stage.Number("sigma")) {}

  absl::StatusOr<std::unique_ptr<TensorState>> Analyze(const TensorDesc& tensor, const ByteSource& source,
                                                       size_t block_elements) const override {
    const DType dtype = tensor.dtype;
    auto bounds = std::make_unique<ClipBounds>();
    KVC_ASSIGN_OR_RETURN(const simd::Moments moments, MomentsOf(source, dtype, block_elements));
    if (moments.count == 0) return bounds;
    const Enclosure enclosure = Enclose(moments, sigma_);
    bounds->lower = KeyOf(dtype, enclosure.lower.least);
    bounds->upper = KeyOf(dtype, enclosure.upper.least);
    if (bounds->lower != KeyOf(dtype, enclosure.lower.most) || bounds->upper != KeyOf(dtype, enclosure.upper.most)) {
      KVC_RETURN_IF_ERROR(SumInOrder(source, dtype, block_elements, *bounds));
    }
    return bounds;
  }

 private:
  static absl::StatusOr<simd::Moments> MomentsOf(const ByteSource& source, DType dtype, size_t block_elements) {
    simd::Moments moments;
    std::optional<float> center;
    // About what is far from the mean for their deviations the squares say little of these; about the mean of the first
    // round they say all there is to say.
    for (int round = 0; round < 2; ++round) {
      moments = {};
      KVC_RETURN_IF_ERROR(ForEachBlock(source, dtype, block_elements, [&](const std::byte* values, size_t n) {
        if (!center) center = SampleMean(dtype, values, n);
        moments.center = *center;
        simd::AddMoments(dtype, values, n, moments);
      }));
      const auto n = static_cast<double>(moments.count);
      if (moments.sum * moments.sum <= n * moments.squares / 2) break;
      center = static_cast<float>(double{moments.center} + moments.sum / n);
    }
    return moments;
  }

  // Of a few values; 0 where none of them is finite.
  static float SampleMean(DType dtype, const std::byte* values, size_t count) {
    constexpr size_t kSamples = 64;
    double sum = 0;
    size_t finite = 0;
    for (size_t i = 0; i < kSamples; ++i) {
      const float x = LoadAsF32(dtype, values, i * count / kSamples);
      if (!std::isfinite(x)) continue;
      sum += x;
      ++finite;
    }
    return finite == 0 ? 0 : static_cast<float>(sum / static_cast<double>(finite));
  }

  // The definition.
  absl::Status SumInOrder(const ByteSource& source, DType dtype, size_t block_elements, ClipBounds& bounds) const {
    std::vector<float> finite;
    const auto for_each = [&](auto visit) {
      return ForEachBlock(source, dtype, block_elements, [&](const std::byte* values, size_t n) {
        finite.resize(n);
        const size_t taken = simd::TakeFinite(dtype, values, n, finite.data());
        for (size_t i = 0; i < taken; ++i) visit(double{finite[i]});
      });
    };
    double count = 0;
    double sum = 0;
    KVC_RETURN_IF_ERROR(for_each([&](double x) {
      sum += x;
      ++count;
    }));
    if (count == 0) return absl::OkStatus();
    const double mean = sum / count;
    double squares = 0;
    KVC_RETURN_IF_ERROR(for_each([&](double x) { squares += (x - mean) * (x - mean); }));
    const double reach = sigma_ * std::sqrt(squares / count);
    bounds.lower = KeyOf(dtype, mean - reach);
    bounds.upper = KeyOf(dtype, mean + reach);
    return absl::OkStatus();
  }

  static uint32_t KeyOf(DType dtype, double bound) {
    const auto most = static_cast<double>(MaxFinite(dtype));
    uint32_t bits = 0;
    StoreFromF32(dtype, static_cast<float>(std::clamp(bound, -most, most)), &bits, 0);
    return VisitBits(dtype, [&](auto zero) -> uint32_t { return OrderKey(static_cast<decltype(zero)>(bits)); });
  }

  double sigma_;
};

constexpr std::string_view kExamples[] = {"clip_sigma(sigma=3)|int4(group=64)"};
constexpr Parameter kParameters[] = {
    Parameter::Real("sigma", 3, 0, 1000, "standard deviations from the mean, within which values stay")};

}  // namespace

extern constinit const CodecRow kClipSigma = {
    .name = "clip_sigma",
    .summary = "values that are too many deviations from the tensor's mean saturate",
    .parameters = kParameters,
    .examples = kExamples,
    .needs_tensor = NeedsTensor,
    .make_transform = Make<TensorTransform, ClipSigma>};

}  // namespace kvcompress
