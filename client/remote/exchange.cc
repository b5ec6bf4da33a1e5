#include "client/remote/exchange.h"

#include "core/frame_plan.h"
#include "core/tensor_decompressor.h"

namespace kvcompress {

v1::CompressRequest CompressMethod::Header(const CompressJob& job, bool to_room) {
  v1::CompressRequest request;
  v1::CompressHeader& header = *request.mutable_header();
  header.set_codec(job.codec);
  header.set_frame_to_buffer(to_room);
  v1::Tensor& tensor = *header.mutable_tensor();
  tensor.set_name(job.tensor.name);
  tensor.set_dtype(static_cast<v1::DType>(job.tensor.dtype));
  tensor.mutable_shape()->Add(job.tensor.shape.begin(), job.tensor.shape.end());
  for (const AxisRole role : job.tensor.axes) tensor.add_axes(static_cast<v1::AxisRole>(role));
  return request;
}

std::optional<uint64_t> CompressMethod::MaxOutput(const CompressJob& job) {
  const absl::StatusOr<uint64_t> bytes = MaxFrameBytes(job.tensor, job.codec);
  return bytes.ok() ? std::optional(*bytes) : std::nullopt;
}

std::optional<uint64_t> DecompressMethod::MaxOutput(const DecompressJob& job) {
  std::vector<std::byte> scratch;
  const absl::StatusOr<ByteSpan> front =
      job.source->Get(0, static_cast<size_t>(std::min<uint64_t>(kMaxHeaderBytes, job.source->size())), scratch);
  TensorDecompressor decompressor(kNoLimits);
  if (!front.ok() || !decompressor.ReadHeader(*front).ok()) return std::nullopt;
  return decompressor.header().tensor_bytes();
}

v1::DecompressRequest DecompressMethod::Header(const DecompressJob& job, bool to_room) {
  v1::DecompressRequest request;
  request.mutable_header()->set_name(job.name);
  request.mutable_header()->set_data_to_buffer(to_room);
  return request;
}

}  // namespace kvcompress
