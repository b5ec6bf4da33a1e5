#include "kvcompress/client/exchange.h"

namespace kvcompress {

v1::CompressRequest CompressMethod::Header(const CompressJob& job) {
  v1::CompressRequest request;
  v1::CompressHeader& header = *request.mutable_header();
  header.set_codec(job.codec);
  v1::Tensor& tensor = *header.mutable_tensor();
  tensor.set_name(job.tensor.name);
  tensor.set_dtype(static_cast<v1::DType>(job.tensor.dtype));
  tensor.mutable_shape()->Add(job.tensor.shape.begin(), job.tensor.shape.end());
  for (const AxisRole role : job.tensor.axes) tensor.add_axes(static_cast<v1::AxisRole>(role));
  return request;
}

v1::DecompressRequest DecompressMethod::Header(const DecompressJob& job) {
  v1::DecompressRequest request;
  request.mutable_header()->set_name(job.name);
  return request;
}

}  // namespace kvcompress
