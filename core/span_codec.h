#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvcompress/base/bytes.h"
#include "kvcompress/base/tensor.h"
#include "kvcompress/codec/chain.h"
#include "kvcompress/compressor.h"
#include "kvcompress/frame/frame.h"
#include "kvcompress/frame_codec.h"
#include "kvcompress/simd/error_sums.h"

// The facade for tensors that are in memory: span in, span out, on the calling thread. The frames are byte for byte
// those of CompressStream.
//
// With codecs of fixed size (intN, raw) a call allocates nothing once its thread has made one of the same shape and
// codec; with zstd behind them nothing but what libzstd allocates. Transforms (sparse, clamp) allocate a little in
// every call to compress.
namespace kvcompress {

// Compresses tensors of one description with one codec. Immutable: any number of threads may use one at once.
class TensorCompressor {
 public:
  // INVALID_ARGUMENT for a bad description or codec spec, RESOURCE_EXHAUSTED above max_tensor_bytes. The name appears
  // in messages only.
  static absl::StatusOr<TensorCompressor> Create(TensorDesc tensor, std::string_view codec, const Limits& limits = {});

  const TensorDesc& tensor() const { return plan_.header.tensor; }
  const FrameHeader& header() const { return plan_.header; }
  const CodecChain& chain() const { return plan_.chain; }
  // The canonical spec.
  const std::string& codec() const { return plan_.header.codec; }
  uint64_t tensor_bytes() const { return plan_.header.tensor_bytes(); }
  // How much room Compress needs: the very size of the frame with intN and raw, an upper bound with other codecs.
  uint64_t max_frame_bytes() const { return max_frame_bytes_; }

  // Writes the frame to the front of `frame` and returns its size; what is behind it, or all of it after an error, is
  // undefined. `values` are tensor_bytes() and do not overlap it; no alignment is needed. `sums`, if not null, is set
  // to the error of the values as they will be decoded, which is measured on the way.
  // INVALID_ARGUMENT for spans of the wrong size, and, naming tensor and index, for a value that the codec cannot hold.
  absl::StatusOr<size_t> Compress(ByteSpan values, MutableByteSpan frame, ErrorSums* sums = nullptr) const;

  // Whether the values may come in pieces: tensors of one block, and codecs that need not see it in one (intN).
  bool takes_pieces() const { return header().block_count() == 1 && chain().takes_pieces(); }
  // The same for values in up to kMaxBlockPieces pieces that follow one another. Only while takes_pieces().
  absl::StatusOr<size_t> CompressPieces(std::span<const ByteSpan> pieces, MutableByteSpan frame,
                                        ErrorSums* sums = nullptr) const;

 private:
  absl::Status CheckSizes(uint64_t value_bytes, uint64_t frame_bytes) const;

  explicit TensorCompressor(FramePlan plan) : plan_(std::move(plan)), max_frame_bytes_(plan_.MaxFrameBytes()) {}

  FramePlan plan_;
  uint64_t max_frame_bytes_;
};

// Decompresses frames of any kind, one after another. For one thread at a time.
class TensorDecompressor {
 public:
  explicit TensorDecompressor(const Limits& limits = {}) : limits_(limits) {}

  // Reads the header of `frame` and nothing behind it. DATA_LOSS for what cannot be a frame, UNIMPLEMENTED for a
  // version or a codec that this build does not know, RESOURCE_EXHAUSTED above max_tensor_bytes.
  absl::Status ReadHeader(ByteSpan frame);

  // What the header said that was read last, by either call, and without an error. The tensor has no name.
  const FrameHeader& header() const { return reader_.header(); }

  // What that header's frame is decoded with.
  const CodecChain& chain() const { return *chain_; }

  // Writes the values of `frame`, exactly one whole frame, to the front of `values` and returns their bytes. After an
  // error the values are undefined. The frame may be hostile, but nobody may write it meanwhile. Errors of ReadHeader;
  // DATA_LOSS for a frame that was damaged or cut off, naming the block; INVALID_ARGUMENT when `values` is too small,
  // or when bytes follow the frame.
  absl::StatusOr<size_t> Decompress(ByteSpan frame, MutableByteSpan values);

 private:
  absl::Status TakeHeader(ByteSpan& rest);

  Limits limits_;
  FrameReader reader_;
  std::optional<CodecChain> chain_;  // of `chain_spec_`, kept for the frames to come
  std::string chain_spec_;
};

}  // namespace kvcompress
