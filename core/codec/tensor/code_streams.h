#pragma once

#include "absl/status/status.h"
#include "core/base/buffer.h"
#include "core/codec/codec.h"
#include "core/simd/uniform_quant.h"

namespace kvcompress {

// The codes of a uniform quantizer as streams (docs/format.md, "quant"): one for codes of up to 8 bits, packed or a
// byte each; for more bits one of the upper 8 bits and one of the packed bits below.
class CodeStreams {
 public:
  CodeStreams(int bits, bool packed) : bits_(bits), packed_(packed && bits < 8) {}

  size_t count() const { return bits_ > 8 ? 2 : 1; }
  void Bounds(size_t values, std::span<size_t> bounds) const;

  // Where the codes of `values` values go, before Finish makes them the streams. Some lie in `scratch`.
  simd::CodeBytes Begin(size_t values, std::span<StreamBuffer> streams, Buffer& scratch) const;
  void Finish(size_t values, simd::CodeBytes codes, std::span<StreamBuffer> streams) const;

  // The codes that the streams hold; DATA_LOSS where their sizes are wrong.
  absl::Status Open(size_t values, std::span<const ByteSpan> streams, Buffer& scratch,
                    simd::ConstCodeBytes& codes) const;

 private:
  int bits_;
  bool packed_;
};

}  // namespace kvcompress
