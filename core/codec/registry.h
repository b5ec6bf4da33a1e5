#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "core/codec/chain_spec.h"
#include "core/codec/codec.h"
#include "core/codec/parameter.h"

namespace kvcompress {

enum class StageKind { kTransform, kTensorCodec, kByteCodec };

std::string_view StageKindName(StageKind kind);  // "transform", "tensor codec", "byte codec"

// What a codec is made of.
struct CodecArgs {
  const StageSpec& stage;
  const CodecEnvironment& environment;
  const TensorDesc& tensor;
};

template <typename Stage>
using MadeCodec = absl::StatusOr<std::unique_ptr<Stage>>;

// What there is to say of a codec, in the file of that codec.
struct CodecRow {
  std::string_view name;
  std::string_view summary;
  std::span<const Parameter> parameters = {};
  // Specs of whole chains that between them use every parameter but a digest, whose file is not there, and what goes
  // with it: what tests, fuzzers and benchmarks run.
  std::span<const std::string_view> examples;

  // Whether Analyze has to see the whole tensor first. Null: it never has to.
  bool (*needs_tensor)(const StageSpec&) = nullptr;
  // Whether a tensor codec's Encode uses Block::first. Then no transform may stand before it, and it may not be part of
  // a chain within another codec.
  bool needs_place = false;
  // Whether it is the transform that has a block which the tensor codec refuses. It stands right before that codec, and
  // passes every value or none, so it may stand before one that needs_place.
  bool is_fallback = false;
  // Whether it has chains within it, for ranges of heads.
  bool takes_parts = false;
  // Whether frames of small tensors with this tensor codec are compact: readers that know plain frames alone, those of
  // 0.1.0, do not know it either.
  bool has_compact_frames = false;
  // Whether a tensor codec only hands values on to others.
  bool has_codecs = false;
  // What one parameter's bounds cannot say: INVALID_ARGUMENT for values that do not go together. Null: all do.
  absl::Status (*check)(const StageSpec&) = nullptr;

  // Exactly the one of its kind is set. INVALID_ARGUMENT for a tensor that the codec does not take.
  MadeCodec<TensorTransform> (*make_transform)(const CodecArgs&) = nullptr;
  MadeCodec<TensorCodec> (*make_tensor_codec)(const CodecArgs&) = nullptr;
  MadeCodec<ByteCodec> (*make_byte_codec)(const CodecArgs&) = nullptr;

  StageKind kind() const {
    if (make_transform != nullptr) return StageKind::kTransform;
    return make_tensor_codec != nullptr ? StageKind::kTensorCodec : StageKind::kByteCodec;
  }
};

// The make function of a codec that takes every tensor. It constructs the codec from its StageSpec, or by default where
// there are no parameters.
template <typename Stage, typename Codec>
MadeCodec<Stage> Make(const CodecArgs& args) {
  if constexpr (std::is_default_constructible_v<Codec>) {
    return std::make_unique<Codec>();
  } else {
    return std::make_unique<Codec>(args.stage);
  }
}

// The row of such a codec. Its file defines, in namespace kvcompress, `extern constinit const CodecRow kName =
// RowOf<Name>(...);` and registry.cc lists kName. A row with needs_... or check names its fields (clip.cc).
template <typename Codec>
constexpr CodecRow RowOf(std::string_view name, std::string_view summary, std::span<const std::string_view> examples,
                         std::span<const Parameter> parameters = {}) {
  CodecRow row = {.name = name, .summary = summary, .parameters = parameters, .examples = examples};
  if constexpr (std::is_base_of_v<TensorTransform, Codec>) row.make_transform = Make<TensorTransform, Codec>;
  if constexpr (std::is_base_of_v<TensorCodec, Codec>) row.make_tensor_codec = Make<TensorCodec, Codec>;
  if constexpr (std::is_base_of_v<ByteCodec, Codec>) row.make_byte_codec = Make<ByteCodec, Codec>;
  return row;
}

// For needs_tensor of a row.
constexpr bool NeedsTensor(const StageSpec&) { return true; }

std::span<const CodecRow* const> AllCodecs();

// Null when there is no codec of that name.
const CodecRow* FindCodec(std::string_view name);

// What each codec is for, and its parameters: for help texts, and as docs/codecs.md.
std::string DescribeCodecs();
std::string CodecsMarkdown();

}  // namespace kvcompress
