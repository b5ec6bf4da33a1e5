#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "core/base/status_macros.h"
#include "core/codec/magnitude.h"
#include "core/codec/registry.h"

namespace kvcompress {
namespace {

// Which values of a tensor become zero: those with a key below `threshold`, and of those with just that key the first
// ones in the tensor's order, until the count is right.
class SparseState final : public TensorState {
 public:
  uint32_t threshold = 0;
  size_t block_elements = 1;
  std::vector<uint64_t> ties_to_drop;  // of each block
  // Of these, how many are -0. A block comes without the values that transforms before dropped, which count as +0 here:
  // among equal zeros it then has other ones first, and which of them goes is seen of -0 alone.
  std::vector<uint64_t> negative_zeros_to_drop;
};

// docs/format.md, "sparse": the side stream is a bit mask of the values that are kept, which alone go on to the next
// stage; or it is empty and all values go on, the dropped ones as zeros, where that costs less.
class Sparse final : public TensorTransform {
 public:
  explicit Sparse(const StageSpec& stage) : ratio_(stage.Number("ratio")) {}

  bool lossless() const override { return ratio_ == 0; }
  size_t MaxSideBytes(const TensorDesc&, size_t count) const override { return (count + 7) / 8; }

  absl::StatusOr<std::unique_ptr<TensorState>> Analyze(const TensorDesc& tensor, const ByteSource& source,
                                                       size_t block_elements) const override {
    const DType dtype = tensor.dtype;
    auto state = std::make_unique<SparseState>();
    state->block_elements = block_elements;
    const uint64_t count = source.size() / DTypeSize(dtype);
    const auto drop = static_cast<uint64_t>(std::floor(ratio_ * static_cast<double>(count)));
    uint64_t left = drop;  // of these, not yet told apart: those with the threshold's key
    KVC_RETURN_IF_ERROR(SelectMagnitude(source, dtype, block_elements, left, state->threshold));
    KVC_RETURN_IF_ERROR(ForEachBlock(source, dtype, block_elements, [&](const std::byte* values, size_t n) {
      uint64_t ties = 0;
      uint64_t negative_zeros = 0;
      for (size_t i = 0; i < n; ++i) {
        const uint32_t key = MagnitudeKey(dtype, values, i);
        ties += key == state->threshold;
        negative_zeros += key == 0 && state->threshold == 0 && ties <= left && IsNegative(dtype, values, i);
      }
      state->ties_to_drop.push_back(std::min(ties, left));
      state->negative_zeros_to_drop.push_back(negative_zeros);
      left -= state->ties_to_drop.back();
    }));
    return state;
  }

  absl::Status Forward(const Block& block, const TensorState* tensor_state, const std::function<size_t(size_t)>& cost,
                       Buffer& values, Buffer& side) const override {
    const auto& state = *static_cast<const SparseState*>(tensor_state);
    const DType dtype = block.tensor.dtype;
    const size_t width = DTypeSize(dtype);
    const auto index = static_cast<size_t>(block.first / state.block_elements);
    uint64_t ties_to_drop = state.ties_to_drop[index];
    uint64_t negative_zeros_to_drop = state.negative_zeros_to_drop[index];

    side.Resize((block.count + 7) / 8);
    std::ranges::fill(side.span(), std::byte{0});
    size_t kept = 0;
    for (size_t i = 0; i < block.count; ++i) {
      const uint32_t key = MagnitudeKey(dtype, block.values.data(), i);
      bool tie = key == state.threshold && ties_to_drop > 0;
      if (tie && key == 0 && IsNegative(dtype, block.values.data(), i)) {
        tie = negative_zeros_to_drop > 0;
        negative_zeros_to_drop -= tie;
      }
      ties_to_drop -= tie;
      const bool keep = key >= state.threshold && !tie;
      side.data()[i / 8] |= static_cast<std::byte>(keep << (i % 8));
      kept += keep;
    }

    const bool compact = side.size() + cost(kept) < cost(block.count);
    values.Resize((compact ? kept : block.count) * width);
    std::byte* out = values.data();
    for (size_t i = 0; i < block.count; ++i) {
      const bool keep = IsKept(side.span(), i);
      if (keep) {
        std::memcpy(out, block.values.data() + i * width, width);
      } else if (!compact) {
        std::memset(out, 0, width);
      }
      if (keep || !compact) out += width;
    }
    if (!compact) side.Resize(0);
    return absl::OkStatus();
  }

  absl::StatusOr<size_t> InnerCount(size_t count, ByteSpan side) const override {
    if (side.empty()) return count;
    if (side.size() != (count + 7) / 8) return absl::DataLossError("sparse: mask has the wrong size");
    size_t kept = 0;
    for (std::byte bits : side) kept += static_cast<size_t>(std::popcount(std::to_integer<unsigned>(bits)));
    if (count % 8 != 0 && (std::to_integer<unsigned>(side.back()) >> (count % 8)) != 0) {
      return absl::DataLossError("sparse: mask has bits behind its end");
    }
    return kept;
  }

  absl::Status Inverse(const TensorDesc& tensor, ByteSpan side, ByteSpan inner, MutableByteSpan values) const override {
    if (side.empty()) return TensorTransform::Inverse(tensor, side, inner, values);
    const size_t width = DTypeSize(tensor.dtype);
    const std::byte* in = inner.data();
    for (size_t i = 0; i * width < values.size(); ++i) {
      std::byte* out = values.data() + i * width;
      if (IsKept(side, i)) {
        std::memcpy(out, in, width);
        in += width;
      } else {
        std::memset(out, 0, width);
      }
    }
    return absl::OkStatus();
  }

 private:
  static bool IsNegative(DType dtype, const std::byte* values, size_t i) {
    return (values[(i + 1) * DTypeSize(dtype) - 1] & std::byte{0x80}) != std::byte{0};
  }

  static bool IsKept(ByteSpan mask, size_t i) { return (std::to_integer<unsigned>(mask[i / 8]) >> (i % 8) & 1) != 0; }

  double ratio_;
};

constexpr std::string_view kExamples[] = {"sparse(ratio=0.5)|int4(group=64)", "sparse(ratio=0.1)|raw",
                                          "sparse(ratio=0.9)|int8(group=32)|zstd(level=1)"};
constexpr Parameter kParameters[] = {Parameter::Real("ratio", 0.5, 0, 1, "the fraction that becomes zero")};

}  // namespace

extern constinit const CodecRow kSparse = {
    .name = "sparse",
    .summary = "the given fraction of a tensor's values, the smallest in magnitude, becomes zero",
    .parameters = kParameters,
    .examples = kExamples,
    .needs_tensor = NeedsTensor,
    .make_transform = Make<TensorTransform, Sparse>};

}  // namespace kvcompress
