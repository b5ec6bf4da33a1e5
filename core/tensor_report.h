#pragma once

#include <cstdint>
#include <string>

#include "core/base/tensor.h"
#include "core/codec/codec.h"
#include "core/simd/error_sums.h"

// What both directions take and tell of a tensor.
namespace kvcompress {

struct Limits {
  uint64_t max_tensor_bytes = uint64_t{64} << 30;
  CodecEnvironment environment = {};
};
// For tensors of any size that can be described.
inline constexpr Limits kNoLimits = {.max_tensor_bytes = kMaxTensorElements * kMaxDTypeSize};

struct TensorReport {
  TensorDesc tensor;
  std::string codec;            // canonical spec
  std::string codec_name;       // of the tensor codec alone
  std::string policy;           // Profile::PolicyFor; filled in by who has the profile
  uint64_t elements = 0;        // words (NumWords)
  bool passed_through = false;  // of an opaque dtype: carried bit for bit, whatever codec was asked for; no sums
  uint64_t tensor_bytes = 0;
  uint64_t frame_bytes = 0;
  ErrorSums sums;                 // of compression only
  uint64_t nonfinite_blocks = 0;  // of compression only: blocks that the codec refused, which are stored as they are
  double codec_seconds = 0;       // time of pool threads
  // Of values and frame, between buffers: blocks that came in pieces, for codecs that need them in one. What a codec
  // reads and writes is not a copy.
  uint64_t copied_bytes = 0;
};

// What the tensor in progress takes.
struct Footprint {
  uint64_t tensor_bytes = 0;
  uint64_t block_bytes = 0;  // of the values of a block
  bool whole = false;        // the stream holds all of it until its last byte has come
};

}  // namespace kvcompress
