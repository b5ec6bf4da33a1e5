#include "core/codec/chain.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/base/float_environment.h"
#include "core/base/half.h"
#include "core/base/status_macros.h"
#include "core/codec/chain_scratch.h"
#include "core/codec/f8_codec.h"
#include "core/codec/registry.h"
#include "core/codec/stream_table.h"
#include "core/codec/transformed_source.h"
#include "core/simd/exact_terms.h"
#include "core/simd/group_quant.h"
#include "core/simd/token_meter.h"

namespace kvcompress {

absl::StatusOr<CodecChain> ChainSpec::Resolve(const CodecEnvironment& environment, const TensorDesc& tensor) const {
  const UsualFloatEnvironment usual;  // stages have their numbers as binary32, too
  CodecChain chain;
  chain.spec_ = For(tensor.name);
  for (const StageSpec& stage : chain.spec_.stages()) {
    const CodecArgs args{stage, environment, tensor};
    switch (stage.codec->kind()) {
      case StageKind::kTransform: {
        KVC_ASSIGN_OR_RETURN(auto transform, stage.codec->make_transform(args));
        chain.has_fallback_ = stage.codec->is_fallback;
        chain.transforms_.push_back(std::move(transform));
        break;
      }
      case StageKind::kTensorCodec: {
        KVC_ASSIGN_OR_RETURN(chain.codec_, MakeTensorCodec(args));
        break;
      }
      case StageKind::kByteCodec: {
        KVC_ASSIGN_OR_RETURN(auto byte_codec, stage.codec->make_byte_codec(args));
        chain.byte_codecs_.push_back(std::move(byte_codec));
        break;
      }
    }
  }
  // Lossless transforms, too, compute with values.
  if (IsOpaque(tensor.dtype) && !(chain.codec_->lossless() && chain.transforms_.empty())) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s is carried bit for bit, and \"%s\" changes values", DTypeName(tensor.dtype), chain.spec()));
  }
  return chain;
}

absl::StatusOr<CodecChain> ChainSpec::ResolvePart(const CodecEnvironment& environment, const TensorDesc& tensor) const {
  absl::StatusOr<CodecChain> chain = Resolve(environment, tensor);
  if (chain.ok()) chain->inner_ = true;
  return chain;
}

std::string_view CodecChain::codec_name() const { return spec_.tensor_codec().codec->name; }

bool CodecChain::lossless() const {
  return codec_->lossless() && std::ranges::all_of(transforms_, [](const auto& stage) { return stage->lossless(); });
}

bool CodecChain::refuses_values() const {
  return !has_fallback_ && (spec_.tensor_codec().codec->takes_parts || std::isfinite(codec_->max_magnitude()));
}

bool CodecChain::needs_tensor() const {
  return std::ranges::any_of(spec_.stages(), [](const StageSpec& stage) { return stage.needs_tensor(); });
}

absl::StatusOr<ChainState> CodecChain::Analyze(const TensorDesc& tensor, const ByteSource& values,
                                               size_t block_elements) const {
  const UsualFloatEnvironment environment;
  ChainState state;
  for (size_t i = 0; i < transforms_.size(); ++i) {
    const TransformedSource before(tensor, values, std::span(transforms_).first(i), state);
    KVC_ASSIGN_OR_RETURN(auto own, transforms_[i]->Analyze(tensor, i == 0 ? values : before, block_elements));
    state.push_back(std::move(own));
  }
  if (!spec_.tensor_codec().needs_tensor()) return state;
  const TransformedSource before(tensor, values, std::span(transforms_).first(state.size() - (has_fallback_ ? 1 : 0)),
                                 state);
  KVC_ASSIGN_OR_RETURN(auto own, codec_->Analyze(tensor, is_plain() ? values : before, block_elements));
  state.push_back(std::move(own));
  return state;
}

absl::Status CodecChain::ValueFault(const Block& block) const {
  const DType dtype = block.tensor.dtype;
  const size_t index = simd::FindOutOfRange(dtype, block.values.data(), block.count, codec_->max_magnitude());
  if (index == block.count) {
    // Memory that a client shares holds other values by now.
    return absl::FailedPreconditionError(
        absl::StrFormat("tensor \"%s\": its values changed while %s read them", block.tensor.name, codec_name()));
  }
  const float value = LoadAsF32(dtype, block.values.data(), index);
  const std::string what = std::isnan(value)   ? "NaN"
                           : std::isinf(value) ? (value > 0 ? "infinity" : "-infinity")
                                               : absl::StrFormat("%g", value);
  // What changes no value comes first. A clamp would make rubbish of what is finite.
  const std::string instead =
      std::isfinite(value)
          ? "quant(symmetric=true), blocknorm, near-lossless and lossless do"
          : absl::StrCat("on_nonfinite=lossless stores its block as it is; clamp|", spec_.tensor_codec().text(),
                         std::isnan(value) ? " makes 0 of it" : " makes it finite");
  return absl::InvalidArgumentError(absl::StrFormat("tensor \"%s\": value %d is %s, which %s cannot hold (%s)",
                                                    block.tensor.name, block.first + index, what, codec_name(),
                                                    instead));
}

absl::StatusOr<ByteSpan> CodecChain::Transform(const Block& block, const ChainState& state, Scratch& scratch) const {
  scratch.values.resize(std::max(scratch.values.size(), transforms_.size()));
  scratch.sides.resize(std::max(scratch.sides.size(), transforms_.size()));
  const DType dtype = block.tensor.dtype;
  const size_t width = DTypeSize(dtype);
  const size_t transforms = transforms_.size() - (has_fallback_ ? 1 : 0);
  // Values that are left out come back as zeros. So none are before the last transform that makes others of zeros.
  size_t complete = transforms;
  while (complete > 0 && transforms_[complete - 1]->KeepsZero(dtype, state[complete - 1].get())) --complete;
  scratch.bounds.resize(stream_count());
  ByteSpan values = block.values;
  for (size_t i = 0; i < transforms; ++i) {
    const auto cost = [&](size_t count) {
      if (i + 1 < complete) return size_t{0};
      const std::span<size_t> bounds = std::span(scratch.bounds).first(codec_->stream_count());
      codec_->StreamBounds(block.tensor, count, bounds);
      return std::accumulate(bounds.begin(), bounds.end(), size_t{0});
    };
    const Block own{block.tensor, block.first, values.size() / width, values};
    KVC_RETURN_IF_ERROR(transforms_[i]->Forward(own, state[i].get(), cost, scratch.values[i], scratch.sides[i]));
    values = scratch.values[i].span();
  }
  if (has_fallback_) scratch.sides[transforms_.size() - 1].Resize(0);
  return values;
}

absl::StatusOr<size_t> CodecChain::EncodeBlock(const Block& block, const ChainState& state, MutableByteSpan payload,
                                               ErrorSums* sums, TokenSums* tokens) const {
  const UsualFloatEnvironment environment;
  simd::TokenMeter* meter = nullptr;
  if (tokens != nullptr) {
    tokens->Clear();
    const TokenLayout layout = TokenLayoutOf(block.tensor);
    if (layout.has_tokens()) {
      meter = &ThreadScratch().tokens;
      meter->Begin(layout, block.first);
    }
  }
  absl::StatusOr<size_t> size = !block.pieces.empty() ? EncodePieces(block, state, payload, sums, meter)
                                                      : EncodeWhole(block, state, payload, sums, meter);
  if (size.ok() && meter != nullptr) meter->Take(*tokens);
  return size;
}

absl::StatusOr<size_t> CodecChain::EncodeWhole(const Block& block, const ChainState& state, MutableByteSpan payload,
                                               ErrorSums* sums, simd::TokenMeter* tokens) const {
  if (tokens != nullptr && encodes_pieces()) {
    const Block pieces{block.tensor, block.first, block.count, {}, {&block.values, 1}, block.tokens};
    return EncodePieces(pieces, state, payload, sums, tokens);
  }
  Scratch& scratch = ThreadScratch();
  const DType dtype = block.tensor.dtype;
  KVC_ASSIGN_OR_RETURN(const ByteSpan values, Transform(block, state, scratch));
  PlaceStreams(block.tensor, values.size() / DTypeSize(dtype), payload, scratch);
  const bool fused = codec_->measures() && is_plain();
  const ErrorSums before = sums != nullptr ? *sums : ErrorSums();
  Block transformed{block.tensor, block.first, values.size() / DTypeSize(dtype), values, {}, block.tokens};
  transformed.rotary = block.rotary;
  AddContext(state, sums, transformed);
  if (values.size() != block.values.size()) transformed.tokens = {};
  const absl::Status encoded =
      codec_->Encode(transformed, std::span(scratch.out).subspan(transforms_.size()), fused ? sums : nullptr);
  if (absl::IsInvalidArgument(encoded) && has_fallback_) {
    if (sums != nullptr) *sums = before;
    return EncodeRefused(block, {&values, 1}, payload, sums, tokens);
  }
  if (absl::IsInvalidArgument(encoded) && encoded.message().empty()) return ValueFault(block);
  KVC_RETURN_IF_ERROR(encoded);
  const ByteSpan inner = lossless() ? block.values : codec_->lossless() ? values : ByteSpan();
  KVC_RETURN_IF_ERROR(Measure(block, inner, scratch, fused ? nullptr : sums, tokens));
  return PackStreams(payload, scratch);
}

void CodecChain::AddContext(const ChainState& state, ErrorSums* sums, Block& block) const {
  if (state.size() > transforms_.size()) block.state = state.back().get();
  if (!inner_) block.tokens = {TokenLayoutOf(block.tensor), block.first};
  if (sums != nullptr) block.rotary = &sums->rotary;
}

// The payload of a block that the codec has refused, of which the transforms before the fallback have left `pieces`:
// they are the fallback's side stream, and the codec has none. They are read once, as someone else may write to them.
absl::StatusOr<size_t> CodecChain::EncodeRefused(Block block, std::span<const ByteSpan> pieces, MutableByteSpan payload,
                                                 ErrorSums* sums, simd::TokenMeter* tokens) const {
  Scratch& scratch = ThreadScratch();
  size_t bytes = 0;
  for (const ByteSpan piece : pieces) bytes += piece.size();
  Buffer& side = scratch.sides[transforms_.size() - 1];
  side.Resize(bytes);
  PlaceStreams(block.tensor, 0, payload, scratch);
  std::byte* at = side.data();
  if (byte_codecs_.empty()) {  // where it stays, but for what gets smaller before it
    at = payload.data() + MaxTableBytes(table_sizes());
    for (size_t i = 0; i + 1 < transforms_.size(); ++i) at += scratch.out[i].size;
  }
  const ByteSpan left(at, bytes);
  for (const ByteSpan piece : pieces) at = std::ranges::copy(piece, at).out;
  scratch.out[transforms_.size() - 1] = {at - bytes, bytes};
  const auto streams = std::span(scratch.out).subspan(transforms_.size());
  KVC_RETURN_IF_ERROR(codec_->Encode({block.tensor, block.first, 0, {}}, streams, nullptr));
  if (tokens != nullptr) tokens->Begin(TokenLayoutOf(block.tensor), block.first);
  if (is_plain()) block.values = left;
  KVC_RETURN_IF_ERROR(Measure(block, is_plain() ? left : ByteSpan(), scratch, sums, tokens));
  return PackStreams(payload, scratch);
}

// Measures the block against what its streams decode to, which byte codecs do not change. `inner` is what the tensor
// codec decodes to, where that is known, and the block's values where nothing changes them.
absl::Status CodecChain::Measure(const Block& block, ByteSpan inner, Scratch& scratch, ErrorSums* sums,
                                 simd::TokenMeter* tokens) const {
  const DType dtype = block.tensor.dtype;
  if ((sums == nullptr && tokens == nullptr) || IsOpaque(dtype)) return absl::OkStatus();
  const auto sides = std::span(scratch.out).first(transforms_.size());
  const bool is_undone = std::ranges::all_of(sides, [](const StreamBuffer& side) { return side.size == 0; });
  const std::byte* decoded = inner.data();
  if (inner.data() != block.values.data() && (inner.empty() || !is_undone)) {
    scratch.in.clear();
    for (const StreamBuffer& stream : scratch.out) scratch.in.emplace_back(stream.data, stream.size);
    scratch.decoded.Resize(block.values.size());
    KVC_RETURN_IF_ERROR(DecodeStreams(block.tensor, scratch, inner, scratch.decoded.span()));
    decoded = scratch.decoded.data();
  }
  if (tokens != nullptr) simd::MeasureTokens(dtype, block.values.data(), decoded, block.count, *tokens);
  const bool have_sums = tokens != nullptr && simd::DecodedSquaresFollow(tokens->sums());
  if (sums != nullptr && have_sums) sums->Merge(tokens->sums());
  if (sums != nullptr && !have_sums) simd::MeasureErrors(dtype, block.values.data(), decoded, block.count, *sums);
  return absl::OkStatus();
}

absl::StatusOr<size_t> CodecChain::EncodePieces(Block block, const ChainState& state, MutableByteSpan payload,
                                                ErrorSums* sums, simd::TokenMeter* tokens) const {
  Scratch& scratch = ThreadScratch();
  KVC_RETURN_IF_ERROR(Transform(block, {}, scratch).status());  // nothing but a fallback, which leaves all values
  PlaceStreams(block.tensor, block.count, payload, scratch);
  const ErrorSums before = sums != nullptr ? *sums : ErrorSums();
  AddContext(state, sums, block);
  const absl::Status encoded =
      codec_->EncodePieces(block, std::span(scratch.out).subspan(transforms_.size()), sums, tokens);
  if (absl::IsInvalidArgument(encoded) && has_fallback_) {
    if (sums != nullptr) *sums = before;
    return EncodeRefused(block, block.pieces, payload, sums, tokens);
  }
  if (absl::IsInvalidArgument(encoded)) {
    std::vector<std::byte> values;
    for (const ByteSpan piece : block.pieces) values.insert(values.end(), piece.begin(), piece.end());
    return ValueFault({block.tensor, block.first, block.count, values});
  }
  KVC_RETURN_IF_ERROR(encoded);
  return PackStreams(payload, scratch);
}

}  // namespace kvcompress
