#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/base/buffer.h"
#include "core/base/bytes.h"
#include "core/codec/chain.h"
#include "core/codec/codec.h"
#include "core/simd/token_meter.h"

namespace kvcompress {

// Buffers that a thread uses again for every block.
struct CodecChain::Scratch {
  std::vector<Buffer> values;  // after each transform
  std::vector<Buffer> sides;
  std::vector<Buffer> streams;  // raw ones, where byte codecs follow
  std::vector<Buffer> coded;    // after (encoding) or before (decoding) each byte codec
  Buffer decoded;
  simd::TokenMeter tokens;
  std::vector<size_t> bounds;
  std::vector<uint32_t> sizes;  // the table
  std::vector<size_t> undone;   // which transforms have a side stream
  std::vector<StreamBuffer> out;
  std::vector<ByteSpan> in;
};

}  // namespace kvcompress
