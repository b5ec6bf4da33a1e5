#pragma once

#include <gmock/gmock.h>

#include <string>

#include "core/base/status_macros.h"
#include "core/tensor_compressor.h"
#include "core/tensor_decompressor.h"
#include "kvcompress/v1/kvcompress.pb.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

// Our ends of the wire, which read and write messages by hand, against ends that protoc has made, which do not.
namespace kvcompress::testing {

inline constexpr char kName[] = "layer_0_key";
inline constexpr char kCodec[] = "int4(group=64)";

// What the codec makes of a tensor and of a frame, without any wire.
inline absl::StatusOr<std::string> MakeFrame(const TensorDesc& tensor, std::string_view values, ErrorSums* sums) {
  KVC_ASSIGN_OR_RETURN(const TensorCompressor compressor, TensorCompressor::Create(tensor, kCodec));
  std::vector<std::byte> frame(compressor.max_frame_bytes());
  KVC_ASSIGN_OR_RETURN(const size_t size, compressor.Compress(AsBytes(values), frame, sums));
  return std::string(AsText(ByteSpan(frame).first(size)));
}

struct Decoded {
  TensorDesc tensor;
  std::string values;
};

inline absl::StatusOr<Decoded> Decode(std::string_view frame) {
  TensorDecompressor decompressor;
  KVC_RETURN_IF_ERROR(decompressor.ReadHeader(AsBytes(frame)));
  std::vector<std::byte> values(decompressor.header().tensor_bytes());
  KVC_RETURN_IF_ERROR(decompressor.Decompress(AsBytes(frame), values).status());
  TensorDesc tensor = decompressor.header().tensor;
  tensor.name = kName;
  return Decoded{std::move(tensor), std::string(AsText(values))};
}

inline v1::Tensor ToProto(const TensorDesc& tensor) {
  v1::Tensor proto;
  proto.set_name(tensor.name);
  proto.set_dtype(static_cast<v1::DType>(tensor.dtype));
  proto.mutable_shape()->Add(tensor.shape.begin(), tensor.shape.end());
  for (const AxisRole role : tensor.axes) proto.add_axes(static_cast<v1::AxisRole>(role));
  return proto;
}

// Calls `take` with the parts of `bytes`, `chunk` bytes each.
template <typename Take>
void ForEachChunk(std::string_view bytes, size_t chunk, Take take) {
  for (size_t at = 0; at < bytes.size(); at += chunk) take(std::string(bytes.substr(at, chunk)));
}

// The parameter: how many bytes of payload the stock end puts into a message.
class StockTest : public ::testing::TestWithParam<size_t> {
 protected:
  void SetUp() override {
    absl::StatusOr<std::string> frame = MakeFrame(tensor_, values_, nullptr);
    ASSERT_THAT(frame, IsOk());
    frame_ = *std::move(frame);
    absl::StatusOr<Decoded> decoded = Decode(frame_);
    ASSERT_THAT(decoded, IsOk());
    decoded_ = std::move(decoded->values);
  }

  // As many messages as take a moment.
  const uint64_t tokens_ = GetParam() == 1 ? 20 : 8200;
  const TensorDesc tensor_ = MakeTensor(kName, DType::kF16, {1, 7, tokens_, 64});
  const std::vector<std::byte> value_bytes_ = MakeValues(DType::kF16, 7 * tokens_ * 64, Distribution::kOutliers);
  const std::string_view values_ = AsText(value_bytes_);
  // What must come out.
  std::string frame_;
  std::string decoded_;
};

inline auto AllChunks() { return ::testing::Values(1, 4095, 1 << 20, 3 << 20); }

}  // namespace kvcompress::testing
