#include "core/codec/f8_codec.h"

#include <utility>
#include <vector>

#include "core/base/half.h"
#include "core/base/status_macros.h"

namespace kvcompress {
namespace {

TensorDesc AsF16(TensorDesc tensor) {
  tensor.dtype = DType::kF16;
  return tensor;
}

// Values of an F8 type as F16.
class WideSource final : public ByteSource {
 public:
  WideSource(DType dtype, const ByteSource& values) : dtype_(dtype), values_(values) {}

  uint64_t size() const override { return 2 * values_.size(); }

  absl::StatusOr<ByteSpan> Get(uint64_t offset, size_t count, std::vector<std::byte>& scratch) const override {
    std::vector<std::byte> narrow;
    KVC_ASSIGN_OR_RETURN(const ByteSpan values, values_.Get(offset / 2, count / 2, narrow));
    scratch.resize(count);
    WidenF8(dtype_, values.data(), values.size(), scratch.data());
    return scratch;
  }

 private:
  const DType dtype_;
  const ByteSource& values_;
};

// A codec of F16 for values of an F8 type. It measures nothing: the errors are those of the rounded values.
class F8Codec final : public TensorCodec {
 public:
  F8Codec(TensorDesc tensor, std::unique_ptr<TensorCodec> codec)
      : dtype_(tensor.dtype), wide_(AsF16(std::move(tensor))), codec_(std::move(codec)) {}

  bool lossless() const override { return false; }
  float max_magnitude() const override { return codec_->max_magnitude(); }
  uint32_t BlockElements(const TensorDesc&) const override { return codec_->BlockElements(wide_); }
  size_t stream_count() const override { return codec_->stream_count(); }
  void StreamBounds(const TensorDesc&, size_t count, std::span<size_t> bounds) const override {
    codec_->StreamBounds(wide_, count, bounds);
  }
  absl::StatusOr<std::unique_ptr<TensorState>> Analyze(const TensorDesc&, const ByteSource& values,
                                                       size_t block_elements) const override {
    return codec_->Analyze(wide_, WideSource(dtype_, values), block_elements);
  }
  bool is_fast() const override { return codec_->is_fast(); }
  // Values are read once, when they are widened.
  bool tolerates_changing_values() const override { return codec_->tolerates_changing_values(); }

  absl::Status Encode(const Block& block, std::span<StreamBuffer> streams, ErrorSums*) const override {
    const MutableByteSpan values = Wide(block.count);
    WidenF8(dtype_, block.values.data(), block.count, values.data());
    return codec_->Encode({wide_, block.first, block.count, values, {}, block.tokens, block.state, block.rotary},
                          streams,
                          /*sums=*/nullptr);
  }

  absl::Status Decode(const TensorDesc&, std::span<const ByteSpan> streams, MutableByteSpan values) const override {
    const MutableByteSpan decoded = Wide(values.size());
    KVC_RETURN_IF_ERROR(codec_->Decode(wide_, streams, decoded));
    NarrowToF8(dtype_, decoded.data(), values.size(), values.data());
    return absl::OkStatus();
  }

 private:
  // Room of this thread's for `count` values of F16.
  static MutableByteSpan Wide(size_t count) {
    thread_local Buffer wide;
    wide.Resize(2 * count);
    return wide.span();
  }

  const DType dtype_;
  const TensorDesc wide_;
  const std::unique_ptr<TensorCodec> codec_;
};

}  // namespace

MadeCodec<TensorCodec> MakeTensorCodec(const CodecArgs& args) {
  KVC_ASSIGN_OR_RETURN(std::unique_ptr<TensorCodec> codec, args.stage.codec->make_tensor_codec(args));
  if (!IsF8(args.tensor.dtype) || codec->lossless() || args.stage.codec->has_codecs) return codec;
  return std::make_unique<F8Codec>(args.tensor, std::move(codec));
}

}  // namespace kvcompress
