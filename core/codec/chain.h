#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "core/codec/chain_spec.h"
#include "core/codec/codec.h"

namespace kvcompress {

struct TokenSums;

// The state of a chain's transforms, and of its tensor codec, for one tensor.
using ChainState = std::vector<std::unique_ptr<TensorState>>;

// The codecs of a chain: any number of transforms, one tensor codec, any number of byte codecs. Immutable; one chain
// serves many threads. It serves the tensor that it was resolved for, and others that differ from it only in the name.
//
// A block's payload (docs/format.md, "Block payload") holds the side stream of each transform and the streams of the
// tensor codec. Each stream passes through each byte codec that makes it smaller.
class CodecChain {
 public:
  CodecChain() = default;  // empty: only to be assigned to; ChainSpec::Resolve makes one

  // The canonical text: every parameter, no blanks.
  const std::string& spec() const { return spec_.text(); }
  // The tensor codec's name, a label of bounded variety for metrics.
  std::string_view codec_name() const;
  bool lossless() const;
  // Whether each block gets a codec of its own, which ChosenCodec tells.
  bool chooses() const { return codec_->chooses(); }

  bool has_fallback() const { return has_fallback_; }
  // Whether there are values that it refuses; with a fallback there are none.
  bool refuses_values() const;

  bool is_fast() const { return is_plain() && byte_codecs_.empty() && codec_->is_fast(); }
  // Whether so many bytes of values take about as long as the way to another thread: some 20 us, one block of 16-bit
  // values with a fast codec.
  bool IsShort(uint64_t value_bytes) const { return is_fast() && value_bytes <= uint64_t{256} << 10; }

  // Whether a block may come in pieces.
  bool takes_pieces() const { return is_plain() && codec_->takes_pieces() == Pieces::kMany && !needs_tensor(); }

  // Whether EncodeBlock may be given values that someone else writes while it reads them; see TensorCodec.
  bool tolerates_changing_values() const { return is_plain() && codec_->tolerates_changing_values(); }

  // Whether a payload always has the size of its bound and is never read back while it is written. It may then be
  // written to memory that others may write to at the same time.
  bool encodes_in_place() const {
    return !compact_ && transforms_.empty() && is_fast() && codec_->measures() && codec_->tolerates_changing_values();
  }

  // Whether payloads are those of compact frames.
  void set_compact(bool compact) { compact_ = compact; }

  // Elements of the tensor's blocks.
  uint32_t BlockElements(const TensorDesc& tensor) const { return codec_->BlockElements(tensor); }

  // Whether Analyze must see the whole tensor before a block can be encoded.
  bool needs_tensor() const;
  absl::StatusOr<ChainState> Analyze(const TensorDesc& tensor, const ByteSource& values, size_t block_elements) const;

  // The most bytes that the payload of `count` values takes.
  size_t MaxPayloadBytes(const TensorDesc& tensor, size_t count) const;

  // Writes the payload to `payload`, which has room for MaxPayloadBytes, returns its size, and adds to `sums` the error
  // of the values as DecodeBlock will give them. `tokens`, if not null, is set to what the block adds to the sums about
  // tokens, which `sums` has only of whole tensors. INVALID_ARGUMENT, naming tensor and index, for a value that the
  // chain cannot hold.
  absl::StatusOr<size_t> EncodeBlock(const Block& block, const ChainState& state, MutableByteSpan payload,
                                     ErrorSums* sums, TokenSums* tokens = nullptr) const;

  // Whether a payload that EncodeBlock wrote holds a block that the tensor codec refused.
  bool FellBack(ByteSpan payload) const;

  // Fills `values`. DATA_LOSS for a payload that no encoder wrote.
  absl::Status DecodeBlock(const TensorDesc& tensor, ByteSpan payload, MutableByteSpan values) const;

  // The tensor codec of a block, as a spec, by its payload of `count` values. DATA_LOSS as of DecodeBlock.
  absl::StatusOr<std::string> ChosenCodec(const TensorDesc& tensor, size_t count, ByteSpan payload) const;

 private:
  friend class ChainSpec;

  // Whether the tensor codec is given the block's values as they are.
  bool encodes_pieces() const { return is_plain() && codec_->takes_pieces() != Pieces::kNone; }
  bool is_plain() const { return transforms_.size() == (has_fallback_ ? 1 : 0); }
  size_t stream_count() const { return transforms_.size() + codec_->stream_count(); }
  size_t table_sizes() const { return stream_count() * (1 + byte_codecs_.size()); }
  void StreamBounds(const TensorDesc& tensor, size_t count, std::vector<size_t>& bounds) const;
  absl::StatusOr<size_t> EncodeWhole(const Block& block, const ChainState& state, MutableByteSpan payload,
                                     ErrorSums* sums, simd::TokenMeter* tokens) const;
  absl::StatusOr<size_t> EncodePieces(Block block, const ChainState& state, MutableByteSpan payload, ErrorSums* sums,
                                      simd::TokenMeter* tokens) const;
  // Tells the codec's block what Analyze learned, where a tensor's tokens are, and where gains are added up.
  void AddContext(const ChainState& state, ErrorSums* sums, Block& block) const;
  absl::StatusOr<size_t> EncodeRefused(Block block, std::span<const ByteSpan> pieces, MutableByteSpan payload,
                                       ErrorSums* sums, simd::TokenMeter* tokens) const;
  absl::Status ValueFault(const Block& block) const;

  struct Scratch;
  Scratch& ThreadScratch() const;
  absl::StatusOr<ByteSpan> Transform(const Block& block, const ChainState& state, Scratch& scratch) const;
  void PlaceStreams(const TensorDesc& tensor, size_t count, MutableByteSpan payload, Scratch& scratch) const;
  absl::StatusOr<size_t> PackStreams(MutableByteSpan payload, Scratch& scratch) const;
  absl::Status UnpackStreams(ByteSpan payload, MutableByteSpan values, Scratch& scratch) const;
  absl::Status DecodeStreams(const TensorDesc& tensor, Scratch& scratch, ByteSpan known, MutableByteSpan values) const;
  absl::Status Measure(const Block& block, ByteSpan inner, Scratch& scratch, ErrorSums* sums,
                       simd::TokenMeter* tokens) const;

  ChainSpec spec_;
  bool has_fallback_ = false;  // the last of the transforms
  bool compact_ = false;
  bool inner_ = false;  // works while another chain of the thread does
  std::vector<std::unique_ptr<TensorTransform>> transforms_;
  std::unique_ptr<TensorCodec> codec_;
  std::vector<std::unique_ptr<ByteCodec>> byte_codecs_;
};

}  // namespace kvcompress
