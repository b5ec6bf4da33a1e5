#pragma once

#include <algorithm>
#include <functional>
#include <limits>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/block_size.h"
#include "core/base/buffer.h"
#include "core/base/byte_source.h"
#include "core/base/tensor.h"
#include "core/simd/error_sums.h"
#include "core/simd/rotary.h"
#include "core/simd/token_sums.h"

// The three kinds of stages of a codec chain (chain.h). All are immutable and safe for use by many threads at once;
// equal input gives equal bytes on every CPU. Decoding trusts nothing: streams that cannot be right are DATA_LOSS.
namespace kvcompress {

namespace simd {
class TokenMeter;
}  // namespace simd

class ArtifactStore;

// What codecs may need beyond spec and tensor, handed down by Limits.
struct CodecEnvironment {
  ArtifactStore* artifacts = nullptr;  // core/artifact/artifact_store.h; null: there are none
};

// How values, one after the other, lie among a tensor's tokens.
struct TokenRun {
  TokenLayout layout;
  uint64_t first = 0;  // index of the first one in a tensor of this layout
};

// What a stage learned of a whole tensor before its first block.
class TensorState {
 public:
  virtual ~TensorState() = default;
};

// A run of a tensor's values, in row-major order; the unit of work. A value is a word (NumWords).
struct Block {
  const TensorDesc& tensor;
  uint64_t first;  // index of its first value in the tensor; of no meaning after a transform
  size_t count;
  ByteSpan values;  // count * DTypeSize(tensor.dtype) bytes
  // In place of `values`, for EncodePieces: one that has them all, or, for a codec that takes_pieces() in any number,
  // up to kMaxBlockPieces that may end within a value.
  std::span<const ByteSpan> pieces = {};
  // For a part of a tensor that has a chain of its own; CodecChain knows it of whole tensors. No tokens: there are
  // none, or it is not known, after a transform that left values out.
  TokenRun tokens = {};
  // What a tensor codec that has to see the whole tensor learned of it.
  const TensorState* state = nullptr;
  // Where a tensor codec that turns keys back adds what that brought, if not null.
  simd::RotaryGain* rotary = nullptr;
};
inline constexpr size_t kMaxBlockPieces = 64;

// Values to values of the same dtype, which is not opaque, perhaps fewer, and a side stream.
class TensorTransform {
 public:
  virtual ~TensorTransform() = default;

  // Whether Inverse gives back every bit.
  virtual bool lossless() const = 0;

  // Looks at the whole tensor, if the codec's row says that it has to. `block_elements` is the size of the blocks that
  // Forward will be given.
  virtual absl::StatusOr<std::unique_ptr<TensorState>> Analyze(const TensorDesc&, const ByteSource&,
                                                               size_t /*block_elements*/) const {
    return std::make_unique<TensorState>();
  }

  // The most bytes of the side stream of `count` values.
  virtual size_t MaxSideBytes(const TensorDesc&, size_t /*count*/) const { return 0; }

  // `values` and `side` are resized to fit. `cost(n)` estimates the bytes that the tensor codec makes of n values, for
  // a transform that can choose how many to pass on; it is 0 where all have to be.
  virtual absl::Status Forward(const Block& block, const TensorState* state, const std::function<size_t(size_t)>& cost,
                               Buffer& values, Buffer& side) const = 0;

  // Whether Forward makes +0 of +0, which is what values that transforms before it left out count as.
  virtual bool KeepsZero(DType, const TensorState*) const { return true; }

  // How many values the transform made of a block of `count`, by its side stream.
  virtual absl::StatusOr<size_t> InnerCount(size_t count, ByteSpan /*side*/) const { return count; }
  // Fills `values` from those `inner` ones; there is nothing to undo where these are the values.
  virtual absl::Status Inverse(const TensorDesc&, ByteSpan /*side*/, ByteSpan inner, MutableByteSpan values) const {
    std::copy(inner.begin(), inner.end(), values.begin());
    return absl::OkStatus();
  }
};

// A stream of bytes of a block, while it is being encoded. `data` has room for the bound that StreamBounds gave.
struct StreamBuffer {
  std::byte* data = nullptr;
  size_t size = 0;
};

// In how many pieces a block may come to EncodePieces. kNone: it may not be called.
enum class Pieces { kNone, kOne, kMany };

// A block of values to named byte streams (codes, scales, planes, ...) and back. Only lossless ones are given opaque
// dtypes, and of the F8 types only they and those with codecs within (f8_codec.h).
class TensorCodec {
 public:
  virtual ~TensorCodec() = default;

  virtual bool lossless() const = 0;

  // The largest magnitude it can hold; values above it, infinities and NaN are INVALID_ARGUMENT. Infinity: it takes
  // anything.
  virtual float max_magnitude() const { return std::numeric_limits<float>::infinity(); }

  // Elements of the tensor's blocks, where this codec encodes them: a multiple of kBlockElementsMultiple, at most
  // kMaxBlockElements. Decode takes blocks of any size.
  virtual uint32_t BlockElements(const TensorDesc&) const { return kDefaultBlockElements; }

  virtual size_t stream_count() const = 0;
  // The most bytes of each stream for `count` values.
  virtual void StreamBounds(const TensorDesc& tensor, size_t count, std::span<size_t> bounds) const = 0;

  // Looks at the whole tensor; called if the codec's row says that it has to. `block_elements` is the size of the
  // blocks that Encode will be given.
  virtual absl::StatusOr<std::unique_ptr<TensorState>> Analyze(const TensorDesc&, const ByteSource&,
                                                               size_t /*block_elements*/) const {
    return std::make_unique<TensorState>();
  }

  // Whether both directions run at the speed of memory, some GB/s: then a small tensor is done sooner than handed to
  // another thread.
  virtual bool is_fast() const { return false; }

  // Whether Encode may be given values that someone else is writing at the same time. Whatever it reads, each stream
  // then has exactly the size of its bound.
  virtual bool tolerates_changing_values() const { return false; }

  // Whether Encode adds the error terms to `sums` itself, in the same pass over the data.
  virtual bool measures() const { return false; }
  // Not kNone: such a codec measures(). For kOne whoever has several puts them together first, and counts the copy.
  virtual Pieces takes_pieces() const { return Pieces::kNone; }
  // Encode for the values of all of the block's pieces, with the same result to the bit.
  // `tokens`, if not null, has begun a run, which is these values, and ends it; then `sums` is not null.
  virtual absl::Status EncodePieces(const Block&, std::span<StreamBuffer> /*streams*/, ErrorSums*,
                                    simd::TokenMeter* /*tokens*/) const {
    return absl::UnimplementedError("the codec takes values in one piece");
  }
  // Writes the streams and sets their sizes. `values` are what the transforms left, perhaps fewer than the block had.
  // `sums` may be null, and is unless the codec measures(). INVALID_ARGUMENT for a value that it cannot hold: with an
  // empty text the chain names the first value beyond max_magnitude(); a text of its own is passed on.
  virtual absl::Status Encode(const Block& block, std::span<StreamBuffer> streams, ErrorSums* sums) const = 0;
  virtual absl::Status Decode(const TensorDesc& tensor, std::span<const ByteSpan> streams,
                              MutableByteSpan values) const = 0;

  // Whether each block gets a codec of its own, which Chosen tells.
  virtual bool chooses() const { return false; }
  // The spec of what the block with these streams was encoded with. Only for a codec that chooses().
  virtual absl::StatusOr<std::string> Chosen(std::span<const ByteSpan> /*streams*/) const {
    return absl::UnimplementedError("the codec encodes every block alike");
  }
};

// Bytes to bytes, without loss.
class ByteCodec {
 public:
  virtual ~ByteCodec() = default;

  // Encodes `raw`, which is not empty, into `encoded`, at most `encoded.size()` bytes, and returns their number; 0 when
  // they do not fit (then the chain stores `raw` as it is).
  virtual absl::StatusOr<size_t> Encode(ByteSpan raw, MutableByteSpan encoded) const = 0;
  // Fills all of `raw`, or DATA_LOSS.
  virtual absl::Status Decode(ByteSpan encoded, MutableByteSpan raw) const = 0;
};

}  // namespace kvcompress
