#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/bytes.h"
#include "core/base/tensor.h"
#include "core/codec/chain.h"
#include "core/frame/frame.h"
#include "core/frame_plan.h"
#include "core/simd/error_sums.h"
#include "core/tensor_report.h"

// The facade for tensors that are in memory: span in, span out, on the calling thread. The frames are byte for byte
// those of CompressStream.
//
// With codecs of fixed size (intN, raw) a call allocates nothing once its thread has made one of the same shape and
// codec; with zstd after them nothing but what libzstd allocates. Transforms (sparse, clamp) allocate a little in
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

  // Writes the frame to the front of `frame` and returns its size; what follows it, or all of it after an error, is
  // undefined. `values` are tensor_bytes() and do not overlap it; no alignment is needed. `sums`, if not null, is set
  // to the error of the values as they will be decoded, which is measured on the way.
  // INVALID_ARGUMENT for spans of the wrong size, and, naming tensor and index, for a value that the codec cannot hold.
  absl::StatusOr<size_t> Compress(ByteSpan values, MutableByteSpan frame, ErrorSums* sums = nullptr) const;

  // How many blocks of a frame that Compress made the codec has refused (codec `fallback`).
  uint64_t FallbackBlocks(ByteSpan frame) const;

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

}  // namespace kvcompress
