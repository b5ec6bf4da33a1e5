#include <algorithm>
#include <cmath>
#include <vector>

#include "core/base/half.h"
#include "core/base/status_macros.h"
#include "core/codec/registry.h"
#include "core/codec/tensor/code_streams.h"
#include "core/codec/tensor/value_runs.h"
#include "core/simd/rotated_quant.h"
#include "core/simd/token_meter.h"

namespace kvcompress {
namespace {

// Rows are what the last axis has; where that is shorter or longer than this, runs of kOtherRow values.
constexpr uint64_t kMinRow = 16;
constexpr size_t kOtherRow = 128;

size_t RowLength(const TensorDesc& tensor) {
  const uint64_t extent = tensor.shape.empty() ? 1 : tensor.shape.back();
  return extent < kMinRow || extent > simd::kMaxRotatedRow ? kOtherRow : static_cast<size_t>(extent);
}

constexpr size_t kMeasuredAtOnce = 4096;  // values, and as errors 16 KiB

float* ErrorsOfThread() {
  alignas(64) thread_local float errors[kMeasuredAtOnce];
  return errors;
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
  bool tolerates_changing_values() const override { return true; }  // sizes do not depend on them
  float max_magnitude() const override { return simd::kMaxRotatable; }
  uint32_t BlockElements(const TensorDesc& tensor) const override { return BlockOfUnits(RowLength(tensor)); }

  size_t stream_count() const override { return 2; }
  void StreamBounds(const TensorDesc& tensor, size_t count, std::span<size_t> bounds) const override {
    bounds[0] = ScaleBytes(tensor, count);
    codes_.Bounds(count, bounds.subspan(1));
  }

  bool measures() const override { return true; }
  bool takes_pieces() const override { return true; }

  absl::Status Encode(const Block& block, std::span<StreamBuffer> streams, ErrorSums* sums) const override {
    const Block pieces{block.tensor, block.first, block.count, {}, {&block.values, 1}};
    return EncodePieces(pieces, streams, sums, nullptr);
  }

  absl::Status EncodePieces(const Block& block, std::span<StreamBuffer> streams, ErrorSums* sums,
                            simd::TokenMeter* tokens) const override {
    const TensorDesc& tensor = block.tensor;
    const size_t row = RowLength(tensor);
    const size_t width = DTypeSize(tensor.dtype);
    const ValueRuns runs(row, width, block.pieces);
    const simd::CodeBytes codes = codes_.Begin(runs.count(), streams.subspan(1), CodesOfThread());
    std::byte* scales = streams[0].data;
    uint8_t* code = codes.high;
    float* errors = tokens == nullptr ? nullptr : ErrorsOfThread();
    for (const simd::ValueRun& run : runs.runs()) {
      // Errors are measured while they are in the cache.
      const size_t tile = tokens == nullptr ? run.count : kMeasuredAtOnce / row * row;
      for (size_t at = 0; at < run.count; at += tile) {
        const size_t count = std::min(tile, run.count - at);
        const std::byte* values = static_cast<const std::byte*>(run.values) + at * width;
        if (!simd::QuantizeRotated(Format(tensor), values, count, scales, code, errors)) {
          return absl::InvalidArgumentError("");
        }
        if (tokens != nullptr) tokens->Add(tensor.dtype, values, errors, count);
        scales += ScaleBytes(tensor, count);
        code += count;
      }
    }
    streams[0].size = ScaleBytes(tensor, runs.count());
    if (tokens != nullptr && tokens->End()) {
      sums->Merge(tokens->sums());
    } else if (sums != nullptr) {
      MeasureDecoded(tensor, runs, streams[0].data, codes.high, *sums, tokens);
    }
    codes_.Finish(runs.count(), codes, streams.subspan(1));
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
    simd::DequantizeRotated(Format(tensor), scales.data(), codes.high, count, values.data());
    return absl::OkStatus();
  }

 private:
  simd::RotatedFormat Format(const TensorDesc& tensor) const {
    return {.dtype = tensor.dtype, .bits = bits_, .row = RowLength(tensor)};
  }
  // The figures of a block that is encoded, from what it decodes to.
  void MeasureDecoded(const TensorDesc& tensor, const ValueRuns& runs, const std::byte* scales, const uint8_t* codes,
                      ErrorSums& sums, simd::TokenMeter* tokens) const {
    const size_t width = DTypeSize(tensor.dtype);
    std::vector<std::byte> values, decoded(runs.count() * width);
    for (const simd::ValueRun& run : runs.runs()) {
      const auto* from = static_cast<const std::byte*>(run.values);
      values.insert(values.end(), from, from + run.count * width);
    }
    simd::DequantizeRotated(Format(tensor), scales, codes, runs.count(), decoded.data());
    simd::MeasureErrors(tensor.dtype, values.data(), decoded.data(), runs.count(), sums);
    if (tokens == nullptr) return;
    tokens->BeginExact();
    for (size_t i = 0; i < runs.count(); ++i) {
      const double x = LoadAsF32(tensor.dtype, values.data(), i);
      tokens->AddExact(x, x - LoadAsF32(tensor.dtype, decoded.data(), i));
    }
    tokens->EndExact();
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
