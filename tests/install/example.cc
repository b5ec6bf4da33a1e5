#include <kvcompress/core/base/half.h>
#include <kvcompress/core/quality/quality.h>
#include <kvcompress/core/tensor_compressor.h>
#include <kvcompress/core/tensor_decompressor.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace kvc = kvcompress;

namespace {

void Require(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

}  // namespace

int main() {
  // The keys of a layer: batch, heads, positions, head dimension.
  const std::vector<uint64_t> shape = {1, 8, 512, 128};
  const kvc::TensorDesc tensor = {.name = "layer_0_key",
                                  .dtype = kvc::DType::kF16,
                                  .shape = shape,
                                  .axes = kvc::DefaultAxes("layer_0_key", shape.size())};

  // Once: the compressor of all tensors of this shape, and room for a frame.
  const auto compressor = kvc::TensorCompressor::Create(tensor, "int8(group=64)");
  Require(compressor.status());
  std::vector<std::byte> values(compressor->tensor_bytes());
  std::vector<std::byte> frame(compressor->max_frame_bytes());
  const size_t count = values.size() / kvc::DTypeSize(tensor.dtype);
  for (size_t i = 0; i < count; ++i) {
    kvc::StoreFromF32(tensor.dtype, std::sin(static_cast<float>(i)), values.data(), i);
  }

  // For every tensor: compress, and learn what was lost.
  kvc::ErrorSums sums;
  const auto frame_bytes = compressor->Compress(values, frame, &sums);
  Require(frame_bytes.status());
  const kvc::Quality quality = kvc::QualityOf(sums);
  std::printf("%zu bytes became %zu, SNR %.1f dB\n", values.size(), *frame_bytes, quality.snr_db.value_or(INFINITY));

  // The way back: a frame says what it holds.
  kvc::TensorDecompressor decompressor;
  const auto stored = kvc::ByteSpan(frame).first(*frame_bytes);
  Require(decompressor.ReadHeader(stored));
  std::vector<std::byte> decoded(decompressor.header().tensor_bytes());
  Require(decompressor.Decompress(stored, decoded).status());

  // The error that was reported is the error that there is.
  double largest = 0;
  for (size_t i = 0; i < count; ++i) {
    const double error =
        kvc::LoadAsF32(tensor.dtype, values.data(), i) - kvc::LoadAsF32(tensor.dtype, decoded.data(), i);
    largest = std::max(largest, std::fabs(error));
  }
  std::printf("largest error %.5f, reported %.5f\n", largest, quality.max_error);
  const bool right = largest == quality.max_error && largest > 0 && largest < 1.0 / 127 && *frame_bytes < values.size();
  return right && decompressor.header().tensor.shape == shape ? 0 : 1;
}
