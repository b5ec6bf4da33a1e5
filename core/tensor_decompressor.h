#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/buffer.h"
#include "core/base/bytes.h"
#include "core/base/strided_span.h"
#include "core/codec/chain.h"
#include "core/frame/frame.h"
#include "core/tensor_report.h"

namespace kvcompress {

// Decompresses frames of any kind, one after another. For one thread at a time.
class TensorDecompressor {
 public:
  explicit TensorDecompressor(const Limits& limits = {}) : limits_(limits) {}

  // Reads the header of `frame` and nothing after it. DATA_LOSS for what cannot be a frame, UNIMPLEMENTED for a
  // version or a codec that this build does not know, RESOURCE_EXHAUSTED above max_tensor_bytes, ABORTED where the
  // frame has not the fingerprint that is expected; an empty one expects nothing.
  absl::Status ReadHeader(ByteSpan frame, std::string_view fingerprint = "");

  // What the header said that was read last, by either call, and without an error. The tensor has no name.
  const FrameHeader& header() const { return reader_.header(); }

  // What that header's frame is decoded with.
  const CodecChain& chain() const { return *chain_; }

  // Writes the values of `frame`, exactly one whole frame, to the front of `values` and returns their bytes. After an
  // error of ReadHeader nothing is written, after another one the values are undefined. The frame may be hostile, but
  // nobody may write it meanwhile. Errors of ReadHeader; DATA_LOSS for a frame that was damaged or cut off, naming the
  // block; INVALID_ARGUMENT when `values` is too small, or when bytes follow the frame.
  absl::StatusOr<size_t> Decompress(ByteSpan frame, MutableByteSpan values, std::string_view fingerprint = "") {
    return Decompress(frame, StridedSpan<std::byte>(values), fingerprint);
  }
  // The same into memory with gaps, by way of a block's values in memory of this object's.
  absl::StatusOr<size_t> Decompress(ByteSpan frame, StridedSpan<std::byte> values, std::string_view fingerprint = "");

 private:
  absl::Status TakeHeader(ByteSpan& rest, std::string_view fingerprint);
  absl::Status DecodeInto(StridedSpan<std::byte>& values);

  Limits limits_;
  FrameReader reader_;
  std::optional<CodecChain> chain_;  // of this codec and tensor, kept for the frames to come
  std::string codec_;
  TensorDesc tensor_;
  Buffer block_values_;  // of one that has gaps where it goes
};

}  // namespace kvcompress
