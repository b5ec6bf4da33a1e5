#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "core/base/status_macros.h"
#include "core/codec/magnitude.h"
#include "core/codec/registry.h"
#include "core/simd/kept_values.h"

namespace kvcompress {
namespace {

// Which values of a tensor become zero: those with a key below `threshold`, and of those with just that key, the ties,
// the first ones in the tensor's order, until the count is right.
class SparseState final : public TensorState {
 public:
  uint32_t threshold = 0;
  size_t block_elements = 1;
  size_t blocks_without_ties = 0;      // so many first blocks drop all of theirs, and the others `ties_to_drop`
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
    KVC_RETURN_IF_ERROR(SelectKey(source, dtype, block_elements, simd::KeyOrder::kMagnitude, left, state->threshold));
    KVC_RETURN_IF_ERROR(ForEachBlock(source, dtype, block_elements, [&](const std::byte* values, size_t n) {
      const uint64_t own = left == 0 ? 0 : simd::CountMagnitude(dtype, values, n, state->threshold);
      const uint64_t ties = std::min(own, left);
      if (ties == own && left > 0) ++state->blocks_without_ties;
      state->ties_to_drop.push_back(ties);
      state->negative_zeros_to_drop.push_back(state->threshold == 0 ? CountNegativeZeros(dtype, values, n, ties) : 0);
      left -= ties;
    }));
    return state;
  }

  absl::Status Forward(const Block& block, const TensorState* tensor_state, const std::function<size_t(size_t)>& cost,
                       Buffer& values, Buffer& side) const override {
    const auto& state = *static_cast<const SparseState*>(tensor_state);
    const size_t width = DTypeSize(block.tensor.dtype);
    side.Resize((block.count + 7) / 8);
    const size_t kept = MarkKept(block, state, side.data());
    const bool compact = side.size() + cost(kept) < cost(block.count);
    values.Resize(block.values.size());  // which packing needs
    if (compact) {
      simd::PackKept(width, block.values.data(), block.count, side.data(), values.data());
      values.Resize(kept * width);
    } else {
      simd::ZeroUnkept(width, block.values.data(), block.count, side.data(), values.data());
      side.Resize(0);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<size_t> InnerCount(size_t count, ByteSpan side) const override {
    if (side.empty()) return count;
    if (side.size() != (count + 7) / 8) return absl::DataLossError("sparse: mask has the wrong size");
    if (count % 8 != 0 && (std::to_integer<unsigned>(side.back()) >> (count % 8)) != 0) {
      return absl::DataLossError("sparse: mask has bits behind its end");
    }
    return simd::CountKept(side.data(), side.size());
  }

  absl::Status Inverse(const TensorDesc& tensor, ByteSpan side, ByteSpan inner, MutableByteSpan values) const override {
    if (side.empty()) return TensorTransform::Inverse(tensor, side, inner, values);
    const size_t width = DTypeSize(tensor.dtype);
    simd::UnpackKept(width, inner.data(), values.size() / width, side.data(), values.data());
    return absl::OkStatus();
  }

 private:
  // 64 bits of a mask of so many bytes, from this byte on.
  static uint64_t WordAt(const std::byte* mask, size_t bytes, size_t at) {
    std::byte word[sizeof(uint64_t)] = {};
    std::memcpy(word, mask + at, std::min(sizeof(word), bytes - at));
    return LoadLE<uint64_t>(word);
  }

  // The bits of the values that have the threshold's key: those with the sign bit where it is 0, and the others.
  struct Ties {
    Buffer negative, other;
  };

  static void FindTies(DType dtype, const std::byte* values, size_t count, uint32_t threshold, Ties& ties) {
    const size_t bytes = (count + 7) / 8;
    ties.negative.Resize(bytes);
    ties.other.Resize(bytes);
    simd::MarkValues(simd::MarkOf::kEqual, dtype, values, count, threshold, ties.other.data());
    if (threshold > 0) {
      std::fill_n(ties.negative.data(), bytes, std::byte{0});
      return;
    }
    simd::MarkValues(simd::MarkOf::kNegative, dtype, values, count, 0, ties.negative.data());
    for (size_t i = 0; i < bytes; ++i) {
      ties.negative.data()[i] &= ties.other.data()[i];
      ties.other.data()[i] &= ~ties.negative.data()[i];
    }
  }

  // Of the first so many zeros.
  static uint64_t CountNegativeZeros(DType dtype, const std::byte* values, size_t count, uint64_t zeros) {
    thread_local Ties ties;
    FindTies(dtype, values, count, 0, ties);
    const size_t bytes = ties.other.size();
    uint64_t negative = 0;
    for (size_t at = 0; at < bytes && zeros > 0; at += sizeof(uint64_t)) {
      const uint64_t own = WordAt(ties.negative.data(), bytes, at);
      uint64_t all = own | WordAt(ties.other.data(), bytes, at);
      while (static_cast<uint64_t>(std::popcount(all)) > zeros) all ^= std::bit_floor(all);
      zeros -= static_cast<uint64_t>(std::popcount(all));
      negative += static_cast<uint64_t>(std::popcount(own & all));
    }
    return negative;
  }

  // Clears the bits of `mask` that are the first `drop` ones of `ties`, and returns how many there are.
  static uint64_t DropFirst(const Buffer& ties, uint64_t drop, std::byte* mask) {
    uint64_t dropped = 0;
    for (size_t at = 0; at < ties.size() && dropped < drop; at += sizeof(uint64_t)) {
      uint64_t own = WordAt(ties.data(), ties.size(), at);
      while (dropped + static_cast<uint64_t>(std::popcount(own)) > drop) own ^= std::bit_floor(own);
      dropped += static_cast<uint64_t>(std::popcount(own));
      std::byte kept[sizeof(own)];
      StoreLE(WordAt(mask, ties.size(), at) & ~own, kept);
      std::memcpy(mask + at, kept, std::min(sizeof(kept), ties.size() - at));
    }
    return dropped;
  }

  static uint32_t LargestMagnitudeKey(DType dtype) {
    return VisitBits(dtype,
                     [](auto zero) -> uint32_t { return simd::MaxKey<decltype(zero)>(simd::KeyOrder::kMagnitude); });
  }

  // Makes the mask of a block, and returns how many values are kept.
  static size_t MarkKept(const Block& block, const SparseState& state, std::byte* mask) {
    const DType dtype = block.tensor.dtype;
    const std::byte* const values = block.values.data();
    const auto index = static_cast<size_t>(block.first / state.block_elements);
    const uint64_t ties_to_drop = state.ties_to_drop[index];
    const bool drops_all = index < state.blocks_without_ties && state.threshold < LargestMagnitudeKey(dtype);
    const uint32_t least = state.threshold + (drops_all ? 1 : 0);
    const size_t kept = simd::MarkMagnitudes(dtype, values, block.count, least, mask);
    if (ties_to_drop == 0 || drops_all) return kept;
    thread_local Ties ties;
    FindTies(dtype, values, block.count, state.threshold, ties);
    const uint64_t negative_zeros = state.negative_zeros_to_drop[index];
    return kept - static_cast<size_t>(DropFirst(ties.negative, negative_zeros, mask) +
                                      DropFirst(ties.other, ties_to_drop - negative_zeros, mask));
  }

  double ratio_;
};

constexpr std::string_view kExamples[] = {"sparse(ratio=0.5)|int4(group=64)", "sparse(ratio=0.1)|raw",
                                          "sparse(ratio=0.9)|int8(group=32)|zstd(level=1)"};
constexpr Parameter kParameters[] = {Parameter::Real("ratio", 0.5, 0, 1, "the fraction that becomes zero")};

}  // namespace

extern constinit const CodecRow kSparse = {
    .name = "sparse",
    .summary =
        "the given fraction of a tensor's values, the smallest in magnitude, becomes zero; slow: it "
        "encodes at 1.5 to 2.5 GB/s",
    .parameters = kParameters,
    .examples = kExamples,
    .needs_tensor = NeedsTensor,
    .make_transform = Make<TensorTransform, Sparse>};

}  // namespace kvcompress
