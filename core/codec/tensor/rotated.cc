#include <cmath>

#include "core/base/status_macros.h"
#include "core/codec/registry.h"
#include "core/codec/tensor/code_streams.h"
#include "core/simd/rotated_quant.h"

namespace kvcompress {
namespace {

// Rows are what the last axis has; where that is shorter or longer than this, runs of kOtherRow values.
constexpr uint64_t kMinRow = 16;
constexpr size_t kOtherRow = 128;

size_t RowLength(const TensorDesc& tensor) {
  const uint64_t extent = tensor.shape.empty() ? 1 : tensor.shape.back();
  return extent < kMinRow || extent > simd::kMaxRotatedRow ? kOtherRow : static_cast<size_t>(extent);
}

Buffer& CodesOfThread() {
  thread_local Buffer codes;
  return codes;
}

// docs/format.md, "rotated". Streams: scales, codes. The arithmetic is in simd/rotated_quant.h.
class Rotated final : public TensorCodec {
 public:
  explicit Rotated(const StageSpec& stage)
      : bits_(static_cast<int>(stage.Int("bits"))), codes_(bits_, /*packed=*/true) {}

  bool lossless() const override { return false; }
  bool is_fast() const override { return true; }
  float max_magnitude() const override { return simd::kMaxRotatable; }
  uint32_t BlockElements(const TensorDesc& tensor) const override { return BlockOfUnits(RowLength(tensor)); }

  size_t stream_count() const override { return 2; }
  void StreamBounds(const TensorDesc& tensor, size_t count, std::span<size_t> bounds) const override {
    bounds[0] = ScaleBytes(tensor, count);
    codes_.Bounds(count, bounds.subspan(1));
  }

  absl::Status Encode(const Block& block, std::span<StreamBuffer> streams, ErrorSums*) const override {
    const simd::CodeBytes codes = codes_.Begin(block.count, streams.subspan(1), CodesOfThread());
    if (!simd::scalar::QuantizeRotated(Format(block.tensor), block.values.data(), block.count, streams[0].data,
                                       codes.high)) {
      return absl::InvalidArgumentError("");
    }
    streams[0].size = ScaleBytes(block.tensor, block.count);
    codes_.Finish(block.count, codes, streams.subspan(1));
    return absl::OkStatus();
  }

  absl::Status Decode(const TensorDesc& tensor, std::span<const ByteSpan> streams,
                      MutableByteSpan values) const override {
    const size_t count = values.size() / DTypeSize(tensor.dtype);
    const ByteSpan scales = streams[0];
    if (scales.size() != ScaleBytes(tensor, count)) return absl::DataLossError("rotated: scales have the wrong size");
    for (size_t i = 0; i < scales.size(); i += 2) {
      if (!std::isfinite(simd::RotatedScaleOf(LoadLE<uint16_t>(scales.data() + i)))) {
        return absl::DataLossError("rotated: scale is not a finite number");
      }
    }
    simd::ConstCodeBytes codes;
    KVC_RETURN_IF_ERROR(codes_.Open(count, streams.subspan(1), CodesOfThread(), codes));
    simd::scalar::DequantizeRotated(Format(tensor), scales.data(), codes.high, count, values.data());
    return absl::OkStatus();
  }

 private:
  simd::RotatedFormat Format(const TensorDesc& tensor) const {
    return {.dtype = tensor.dtype, .bits = bits_, .row = RowLength(tensor)};
  }
  static size_t ScaleBytes(const TensorDesc& tensor, size_t count) {
    return 2 * simd::RotatedRows(RowLength(tensor), count);
  }

  int bits_;
  CodeStreams codes_;
};

constexpr std::string_view kExamples[] = {"rotated(bits=4)", "rotated(bits=3)|rans", "rotated(bits=2)"};
constexpr Parameter kParameters[] = {Parameter::IntegerOf("bits", 4, "2|3|4", "of a code")};

}  // namespace

extern constinit const CodecRow kRotated = {
    .name = "rotated",
    .summary =
        "2 to 4 bits of a Gaussian source: rows rotated by signs and Hadamard transforms, one 16-bit scale a row",
    .parameters = kParameters,
    .examples = kExamples,
    .needs_place = true,
    .make_tensor_codec = Make<TensorCodec, Rotated>};

}  // namespace kvcompress
