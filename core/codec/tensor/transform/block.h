#pragma once

#include <optional>

#include "absl/status/status.h"
#include "core/codec/tensor/transform/rate.h"
#include "core/codec/tensor/transform/segment.h"

// A block of the codec `transform`, both ways (docs/format.md, "transform").
namespace kvcompress {

struct TransformInput {
  DType dtype;
  TransformLayout layout;
  size_t count;
  const std::byte* values;
};
inline constexpr float kMaxTransformable = 0x1p123f;
inline constexpr float kMinStep = 0x1p-100f;
inline constexpr float kMaxStep = 0x1p102f;

// What a block of `count` values of w bytes takes at most.
constexpr size_t MaxSideBytes(size_t count, size_t width) { return 64 + count * width; }
constexpr size_t MaxWordBytes(size_t count, size_t width) { return count * width; }

struct TransformSizes {
  size_t side;
  size_t words;
  float step = 0;                // the given one, or a larger one that reaches the largest value
  simd::RotaryGain rotary = {};  // of the encoder's choice to turn back, none with an artifact
  ClassCounts classes = {};      // that its values were coded with
};

// `sinks`: the first tokens of a sequence get finer steps. With the step 0, and where the coded block would be no
// smaller than its values, these are stored. `decoded`, if not null, is set to what the block will be decoded to. None
// where a value is not finite or beyond kMaxTransformable.
std::optional<TransformSizes> EncodeTransform(const TransformFormat& format, bool sinks, float step,
                                              const TransformInput& input, std::byte* side, std::byte* words,
                                              std::byte* decoded = nullptr);
// For what a block is decoded to alone: does not encode the words where they surely take less than its values, so that
// there is room for them, but what they and the side information are is of no meaning. False where a value is refused.
bool ReconstructTransform(const TransformFormat& format, bool sinks, float step, const TransformInput& input,
                          std::byte* side, std::byte* words, std::byte* decoded);

// The classes that an encoder finds for a block's values with this step. False where one is refused.
bool CountClasses(const TransformFormat& format, bool sinks, float step, const TransformInput& input,
                  ClassCounts& counts);

absl::Status DecodeTransform(const TransformFormat& format, DType dtype, ByteSpan side, ByteSpan words,
                             MutableByteSpan values);

}  // namespace kvcompress
