#pragma once

#include "core/compress_stream.h"
#include "core/decompress_stream.h"
#include "proto/wire/direction.h"
#include "server/session/headers.h"
#include "server/session/options.h"
#include "server/session/sinks.h"

// What a session does in each direction: which of the core's streams it feeds, and how.
namespace kvcompress {

struct CompressStreamWork {
  using Direction = CompressDirection;
  using Stream = CompressStream;
  using Sink = CompressResponses;

  absl::Status Begin(Stream& stream, const v1::CompressHeader& header, const SessionOptions& options,
                     OutputBuffers* buffers);
  static absl::Status AppendPart(Stream& stream, Slice& bytes) { return stream.AppendPart(bytes); }

  CompressHeaders headers;
};

struct DecompressStreamWork {
  using Direction = DecompressDirection;
  using Stream = DecompressStream;
  using Sink = DecompressResponses;

  static absl::Status Begin(Stream& stream, const v1::DecompressHeader& header, const SessionOptions& options,
                            OutputBuffers* buffers);
  static absl::Status AppendPart(Stream& stream, Slice& bytes) { return stream.AppendPart(bytes.bytes); }
};

}  // namespace kvcompress
