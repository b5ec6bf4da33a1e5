#include "server/session/stream_work.h"

#include <utility>

#include "core/base/status_macros.h"

namespace kvcompress {

absl::Status CompressStreamWork::Begin(Stream& stream, const v1::CompressHeader& header, const SessionOptions& options,
                                       OutputBuffers* buffers) {
  KVC_ASSIGN_OR_RETURN(CompressHeaders::Job job, headers.Read(header, options.default_codec));
  return stream.Begin(std::move(job.tensor), job.codec, buffers);
}

absl::Status DecompressStreamWork::Begin(Stream& stream, const v1::DecompressHeader& header, const SessionOptions&,
                                         OutputBuffers* buffers) {
  KVC_RETURN_IF_ERROR(CheckName(header));
  return stream.Begin(header.name(), buffers);
}

}  // namespace kvcompress
