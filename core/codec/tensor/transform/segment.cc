#include "core/codec/tensor/transform/segment.h"

#include <algorithm>
#include <numeric>

#include "core/base/block_size.h"
#include "core/codec/tensor/transform/basis.h"
#include "core/simd/token_sums.h"

namespace kvcompress {

bool TransformLayout::is_valid(size_t count) const {
  return channels >= std::min<size_t>(kMinChannels, count) && channels <= kMaxChannels && tokens >= 1 &&
         tokens <= kMaxTensorElements / channels && first < tokens * channels && head_dim >= 1 &&
         channels % head_dim == 0;
}

size_t TransformLayout::RotaryDims(const TransformFormat& format) const {
  const simd::RotaryEmbedding& rotary = format.rotary;
  if (rotary.theta == 0 || rotary.offset >= head_dim) return 0;
  const size_t most = head_dim - rotary.offset;
  if (rotary.dims > most) return 0;
  return (rotary.dims == 0 ? most : rotary.dims) / 2 * 2;
}

namespace {

TransformLayout LayoutWithoutBasis(const TensorDesc& tensor, const TokenRun& tokens, size_t count) {
  const uint64_t last = tensor.shape.empty() ? 1 : tensor.shape.back();
  TransformLayout layout;
  if (tokens.layout.has_tokens() && tokens.layout.channels >= TransformLayout::kMinChannels) {
    layout.channels = static_cast<uint32_t>(tokens.layout.channels);
    layout.tokens = tokens.layout.tokens;
    layout.first = tokens.first % tokens.layout.sequence();
    if (last > 0 && layout.channels % last == 0) layout.head_dim = static_cast<uint32_t>(last);
    return layout;
  }
  // Rows of the last axis, where these are long enough and enough for statistics.
  constexpr uint64_t kMinTokens = 8;
  const bool by_rows =
      last >= TransformLayout::kMinChannels && last <= TransformLayout::kMaxChannels && last * kMinTokens <= count;
  layout.channels = by_rows ? static_cast<uint32_t>(last) : static_cast<uint32_t>(std::clamp<size_t>(count, 1, 64));
  layout.tokens = (count + layout.channels - 1) / layout.channels;
  return layout;
}

}  // namespace

TransformLayout LayoutOf(const TransformFormat& format, const TensorDesc& tensor, const TokenRun& tokens,
                         size_t count) {
  TransformLayout layout = LayoutWithoutBasis(tensor, tokens, count);
  if (format.artifact != nullptr) AddBasis(*format.artifact, tensor, tokens, count, layout);
  return layout;
}

uint32_t TransformBlockElements(const TensorDesc& tensor) {
  constexpr uint32_t kLongSequence = 1u << 18;
  const TokenLayout layout = TokenLayoutOf(tensor);
  if (!layout.has_tokens()) return kDefaultBlockElements;
  const uint64_t sequence = layout.sequence();
  uint32_t elements = BlockOfUnits(sequence);
  if (elements == 0) elements = BlockOfUnits(sequence, kLongSequence);
  if (elements == 0) {
    const uint64_t parts = (sequence + kDefaultBlockElements - 1) / kDefaultBlockElements;
    const uint64_t tokens = (layout.tokens + parts - 1) / parts;
    const uint64_t whole = std::lcm(layout.channels, uint64_t{kBlockElementsMultiple});
    const uint64_t rounded = (tokens * layout.channels + whole - 1) / whole * whole;
    if (rounded <= kMaxBlockElements) elements = static_cast<uint32_t>(rounded);
  }
  return elements != 0 ? elements : kDefaultBlockElements;
}

std::vector<Segment> CutIntoSegments(const TransformLayout& layout, size_t count) {
  std::vector<Segment> segments;
  uint64_t place = layout.first;  // in the sequence
  for (size_t at = 0; at < count;) {
    Segment segment;
    segment.first = at;
    segment.position = place / layout.channels;
    const size_t within = place % layout.channels;
    const size_t left = count - at;
    if (within != 0 || left < layout.channels) {
      segment.is_whole = false;
      segment.tokens = 1;
      segment.channels = std::min<size_t>(left, layout.channels - within);
    } else {
      segment.tokens = std::min<uint64_t>(layout.tokens - segment.position, left / layout.channels);
      segment.channels = layout.channels;
    }
    at += segment.count();
    place += segment.count();
    if (place == layout.tokens * layout.channels) place = 0;
    segments.push_back(std::move(segment));
  }
  return segments;
}

void TurnSegment(const TransformFormat& format, const TransformLayout& layout, const Segment& segment,
                 simd::RotaryTurn turn, simd::RotaryTable& table, float* values) {
  TurnTokens(format, layout, segment, 0, segment.tokens, turn, table, values);
}

void TurnTokens(const TransformFormat& format, const TransformLayout& layout, const Segment& segment, size_t first,
                size_t tokens, simd::RotaryTurn turn, simd::RotaryTable& table, float* values) {
  const simd::RotaryEmbedding& rotary = format.rotary;
  table.Make(rotary, layout.RotaryDims(format), rotary.start + segment.position, first + tokens);
  for (size_t head = rotary.offset; head < segment.channels; head += layout.head_dim) {
    simd::TurnRows(table, first, rotary.pairs, turn, values + head, tokens, segment.channels);
  }
}

}  // namespace kvcompress
