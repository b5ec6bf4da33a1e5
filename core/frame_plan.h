#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/codec/chain.h"
#include "core/frame/frame.h"
#include "core/simd/rotary.h"
#include "core/tensor_report.h"

// A tensor's way into a frame and back, step by step: what streams and spans share.
namespace kvcompress {

absl::Status CheckTensorBytes(uint64_t bytes, const Limits& limits);

// The spec of frames that store a block which `codec` refuses (NaN, infinity, too large) as it is: with `fallback` in
// front of the tensor codec; `codec` itself where it refuses none. INVALID_ARGUMENT as of PlanFrame, and for a spec
// that becomes too long.
absl::StatusOr<std::string> WithFallback(const TensorDesc& tensor, std::string_view codec);

// The spec of frames of a tensor that is known to have this rotary embedding: ChainSpec::WithRotary; `codec` itself for
// an opaque tensor. INVALID_ARGUMENT as of that.
absl::StatusOr<std::string> WithRotary(const TensorDesc& tensor, std::string_view codec,
                                       const simd::RotaryEmbedding& rotary);

// What is known of a frame before its first block.
struct FramePlan {
  FrameHeader header;
  std::vector<std::byte> header_bytes;
  CodecChain chain;

  // The most bytes that block `index` adds to the frame; header and end mark of the frame count with its first and
  // last.
  uint64_t BlockBytes(uint64_t index) const;
  // The size of the header, all blocks and the end mark, each at its bound.
  uint64_t MaxFrameBytes() const;
};

// INVALID_ARGUMENT for a bad description or codec spec, or a tensor that the codec does not take; RESOURCE_EXHAUSTED
// above max_tensor_bytes. An opaque tensor that the codec does not take gets kOpaqueChain instead.
absl::StatusOr<FramePlan> PlanFrame(TensorDesc tensor, std::string_view codec, const Limits& limits);

// The size of a tensor's frame: exact for intN and raw, whose streams always have the sizes of their bounds; an upper
// bound for other codecs.
absl::StatusOr<uint64_t> MaxFrameBytes(const TensorDesc& tensor, std::string_view codec);

// Fills in what is known before the first block: everything but frame_bytes, sums, nonfinite_blocks, codec_seconds
// and copied_bytes.
void Describe(const FrameHeader& header, const CodecChain& chain, TensorReport& report);

// The values of a block, whole or in pieces; see Block.
struct BlockValues {
  ByteSpan whole = {};
  std::span<const ByteSpan> pieces = {};
};

// Writes block `index`, its header and its payload, to `block`, which has room for block_header_bytes() and the chain's
// MaxPayloadBytes, and returns its size. `sums`, `tokens` and errors are those of CodecChain::EncodeBlock.
absl::StatusOr<size_t> EncodeFrameBlock(const FrameHeader& header, const CodecChain& chain, const ChainState& state,
                                        uint64_t index, const BlockValues& values, MutableByteSpan block,
                                        ErrorSums* sums, TokenSums* tokens);

// The chain that a frame's blocks are decoded with. UNIMPLEMENTED for one that this build does not know,
// DATA_LOSS for one that does not take such a tensor.
absl::StatusOr<CodecChain> ChainOfFrame(const FrameHeader& header, const CodecEnvironment& environment = {});

// Of a frame of `bytes` bytes that was said to have `told`, which is more.
absl::Status FrameEndsEarly(uint64_t bytes, uint64_t told);

// Of a frame that `count` bytes follow.
absl::Status BytesBehindFrame(uint64_t count);

// Fills `values`, as many bytes as the block's elements take. DATA_LOSS, naming the block, when its checksum is wrong
// or no encoder wrote it.
absl::Status DecodeFrameBlock(const FrameHeader& header, const CodecChain& chain, const FrameBlock& block,
                              MutableByteSpan values);

}  // namespace kvcompress
