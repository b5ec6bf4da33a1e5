#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/artifact/artifact.h"
#include "core/codec/codec.h"
#include "core/simd/rotary.h"

// Parts of the codec `transform` (docs/format.md, "transform").
namespace kvcompress {

// What the spec says.
struct TransformFormat {
  bool trellis = true;
  simd::RotaryEmbedding rotary = {};
  std::shared_ptr<const Artifact> artifact = nullptr;
  // Of encoders with an artifact: how many of the first coefficients of each head are kept, one number for all or one
  // for each. Empty: all.
  std::vector<uint32_t> ranks = {};
};

// How a block's values lie among tokens.
struct TransformLayout {
  uint32_t channels = 1;  // of a token
  uint64_t tokens = 1;    // of a sequence
  uint64_t first = 0;     // the block's first value in its sequence
  uint32_t head_dim = 1;  // of which each token has channels / head_dim
  // With an artifact: 2 layer, and 1 more of values; and which basis its segments have: 0: none; 1: those of all groups
  // of heads, side by side; 2 + g: that of group g, the next sequence's that of the next.
  uint64_t subject = 0;
  uint64_t arrangement = 0;

  static constexpr uint32_t kMinChannels = 16;  // but for blocks of fewer values
  static constexpr uint32_t kMaxChannels = 1 << 16;

  // For a block of `count` values.
  bool is_valid(size_t count) const;
  // Channels of a head that turn, an even number; 0 where nothing can.
  size_t RotaryDims(const TransformFormat& format) const;
};

// Of a block of `count` values with these `tokens`, which may be none.
TransformLayout LayoutOf(const TransformFormat& format, const TensorDesc& tensor, const TokenRun& tokens, size_t count);

// Blocks of whole sequences where these are short enough, else of whole tokens, a sequence's of equal size.
uint32_t TransformBlockElements(const TensorDesc& tensor);

// A token whose step is finer, or whose values are of another size than the others'.
struct SpecialToken {
  uint32_t token;   // from the segment's first
  int step_shift;   // its step is that of the block times 2^-step_shift
  int class_shift;  // added to the classes, beside 4 step_shift
};

// Consecutive tokens of a sequence, all of their channels; or a part of one token, where a block begins or ends in it.
struct Segment {
  size_t first = 0;  // value in the block
  size_t tokens = 0;
  size_t channels = 0;
  uint64_t position = 0;  // of its first token in the sequence
  bool is_whole = true;   // has all channels
  bool turned = false;    // the rotary embedding is undone
  bool has_means = false;
  bool repeats = false;               // classes and means are told by their difference from those of the segment before
  std::vector<SpecialToken> special;  // by rising token
  std::vector<int> classes;           // of each channel
  std::vector<int32_t> means;         // of each channel, in units of half a unit

  size_t count() const { return tokens * channels; }
};

// The segments of a block of `count` values, in their order.
std::vector<Segment> CutIntoSegments(const TransformLayout& layout, size_t count);

// Turns the heads of all tokens of a whole segment, whose values these are; the layout has channels that turn.
void TurnSegment(const TransformFormat& format, const TransformLayout& layout, const Segment& segment,
                 simd::RotaryTurn turn, simd::RotaryTable& table, float* values);
// The same for some of its tokens, from `first` on.
void TurnTokens(const TransformFormat& format, const TransformLayout& layout, const Segment& segment, size_t first,
                size_t tokens, simd::RotaryTurn turn, simd::RotaryTable& table, float* values);

}  // namespace kvcompress
