#include "client/remote/exchange.h"

#include "core/frame_plan.h"
#include "core/tensor_decompressor.h"

namespace kvcompress {

std::optional<uint64_t> MaxOutputBytes(const CompressJob& job) {
  const absl::StatusOr<uint64_t> bytes = MaxFrameBytes(job.tensor, job.codec);
  return bytes.ok() ? std::optional(*bytes) : std::nullopt;
}

std::optional<uint64_t> MaxOutputBytes(const DecompressJob& job) {
  std::vector<std::byte> scratch;
  const absl::StatusOr<ByteSpan> front =
      job.source->Get(0, static_cast<size_t>(std::min<uint64_t>(kMaxHeaderBytes, job.source->size())), scratch);
  TensorDecompressor decompressor(kNoLimits);
  if (!front.ok() || !decompressor.ReadHeader(*front).ok()) return std::nullopt;
  return decompressor.header().tensor_bytes();
}

}  // namespace kvcompress
