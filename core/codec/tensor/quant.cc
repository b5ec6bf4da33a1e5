#include <algorithm>
#include <cstring>

#include "core/base/half.h"
#include "core/base/status_macros.h"
#include "core/codec/registry.h"
#include "core/codec/tensor/code_streams.h"
#include "core/codec/tensor/outliers.h"
#include "core/simd/uniform_quant.h"

namespace kvcompress {
namespace {

enum class Per { kBlock, kChannel, kToken, kGroup };  // in the order of the parameter's choices

// Buffers that a thread uses again for every block.
struct Scratch {
  Buffer values;  // without the outliers
  Buffer min, max;
  Buffer codes;
  std::vector<uint16_t> scale_bits;
  std::vector<float> scales, offsets;

  static Scratch& OfThread() {
    thread_local Scratch scratch;
    return scratch;
  }
};

// docs/format.md, "quant". Streams: scales, minima unless symmetric, codes (one or two streams), and the outliers (two)
// if there are any. The arithmetic is in simd/uniform_quant.h.
class Quant final : public TensorCodec {
 public:
  explicit Quant(const StageSpec& stage)
      : bits_(static_cast<int>(stage.Int("bits"))),
        per_(stage.Choice<Per>("per")),
        group_(static_cast<size_t>(stage.Int("group"))),
        symmetric_(stage.Flag("symmetric")),
        codes_(bits_, stage.Int("layout") == 0),
        outliers_(stage.Number("outliers")) {}

  bool lossless() const override { return false; }
  bool is_fast() const override { return !has_outliers(); }
  // Of any dtype; what a narrower one cannot hold does not occur in it.
  float max_magnitude() const override { return Format(DType::kF32).max_magnitude(); }

  size_t stream_count() const override { return FirstOutlierStream() + (has_outliers() ? Outliers::kStreams : 0); }

  void StreamBounds(const TensorDesc& tensor, size_t count, std::span<size_t> bounds) const override {
    const size_t cells = MaxCells(count);
    bounds[0] = RowBytes() + 2 * cells;
    if (!symmetric_) bounds[1] = DTypeSize(tensor.dtype) * cells;
    codes_.Bounds(count, bounds.subspan(FirstCodeStream()));
    if (has_outliers()) outliers_.StreamBounds(tensor.dtype, count, bounds.subspan(FirstOutlierStream()));
  }

  absl::Status Encode(const Block& block, std::span<StreamBuffer> streams, ErrorSums*) const override {
    Scratch& scratch = Scratch::OfThread();
    const TensorDesc& tensor = block.tensor;
    const DType dtype = tensor.dtype;
    const size_t width = DTypeSize(dtype);
    const size_t count = block.count;
    ByteSpan values = block.values;
    const simd::UniformFormat format = Format(dtype);
    if (has_outliers()) {
      KVC_RETURN_IF_ERROR(
          outliers_.Take(dtype, format.max_magnitude(), values, streams.subspan(FirstOutlierStream()), scratch.values));
      values = scratch.values.span();
    }

    const auto extent = static_cast<size_t>(
        std::clamp<uint64_t>(tensor.shape.empty() ? 1 : tensor.shape.back(), 1, std::max<size_t>(count, 1)));
    const simd::CellLayout layout = Layout(extent, count);
    const size_t cells = layout.cells(count);
    scratch.min.Resize(cells * width);
    scratch.max.Resize(cells * width);
    scratch.scale_bits.resize(cells);
    simd::CellRanges(dtype, layout, values.data(), count, scratch.min.data(), scratch.max.data());
    if (!simd::CellScales(format, scratch.min.data(), scratch.max.data(), cells, scratch.scale_bits.data())) {
      return absl::InvalidArgumentError("");
    }

    if (RowBytes() > 0) StoreLE(static_cast<uint32_t>(extent), streams[0].data);
    if (cells > 0) std::memcpy(streams[0].data + RowBytes(), scratch.scale_bits.data(), 2 * cells);
    streams[0].size = RowBytes() + 2 * cells;
    if (!symmetric_) {
      if (cells > 0) std::memcpy(streams[1].data, scratch.min.data(), width * cells);
      streams[1].size = width * cells;
    }
    const float* offsets = Widen(dtype, scratch.scale_bits.data(), scratch.min.data(), cells, scratch);
    const std::span<StreamBuffer> code_streams = streams.subspan(FirstCodeStream());
    const simd::CodeBytes codes = codes_.Begin(count, code_streams, scratch.codes);
    simd::UniformQuantize(format, layout, values.data(), count, scratch.scales.data(), offsets, codes);
    codes_.Finish(count, codes, code_streams);
    return absl::OkStatus();
  }

  absl::Status Decode(const TensorDesc& tensor, std::span<const ByteSpan> streams,
                      MutableByteSpan values) const override {
    const DType dtype = tensor.dtype;
    Scratch& scratch = Scratch::OfThread();
    const size_t width = DTypeSize(dtype);
    const size_t count = values.size() / width;
    if (streams[0].size() < RowBytes()) return absl::DataLossError("quant: scales have the wrong size");
    const size_t extent = RowBytes() > 0 ? LoadLE<uint32_t>(streams[0].data()) : 1;
    if (extent < 1 || extent > std::max<size_t>(count, 1)) return absl::DataLossError("quant: row has no length");
    const simd::CellLayout layout = Layout(extent, count);
    const size_t cells = layout.cells(count);
    const ByteSpan scales = streams[0].subspan(RowBytes());
    if (scales.size() != 2 * cells) return absl::DataLossError("quant: scales have the wrong size");
    for (size_t i = 0; i < cells; ++i) {
      if (LoadLE<uint16_t>(scales.data() + 2 * i) > simd::MaxScaleBits(dtype)) {
        return absl::DataLossError("quant: scale is not a finite number");
      }
    }
    const std::byte* minima = nullptr;
    if (!symmetric_) {
      minima = streams[1].data();
      if (streams[1].size() != width * cells) return absl::DataLossError("quant: minima have the wrong size");
      for (size_t i = 0; i < cells; ++i) {
        if (!(std::abs(LoadAsF32(dtype, minima, i)) <= MaxFinite(dtype))) {
          return absl::DataLossError("quant: minimum is not a finite number");
        }
      }
    }
    simd::ConstCodeBytes codes;
    KVC_RETURN_IF_ERROR(codes_.Open(count, streams.subspan(FirstCodeStream()), scratch.codes, codes));
    const float* offsets = Widen(dtype, scales.data(), minima, cells, scratch);
    simd::UniformDequantize(Format(dtype), layout, codes, count, scratch.scales.data(), offsets, values.data());
    if (has_outliers()) return outliers_.Put(dtype, streams.subspan(FirstOutlierStream()), values);
    return absl::OkStatus();
  }

 private:
  // Rows shorter than this share a scale with the next, and fewer rows than that give channels too few values.
  static constexpr size_t kMinRow = 32;
  static constexpr size_t kMinStretch = 16;

  bool has_outliers() const { return outliers_.fraction() > 0; }
  size_t FirstCodeStream() const { return symmetric_ ? 1 : 2; }
  size_t FirstOutlierStream() const { return FirstCodeStream() + codes_.count(); }
  simd::UniformFormat Format(DType dtype) const { return {.dtype = dtype, .bits = bits_, .symmetric = symmetric_}; }

  // The length of rows, with which scales begin.
  size_t RowBytes() const { return per_ == Per::kChannel || per_ == Per::kToken ? 4 : 0; }

  simd::CellLayout Layout(size_t extent, size_t count) const {
    const size_t all = std::max<size_t>(count, 1);
    switch (per_) {
      case Per::kBlock: return {.row = all, .run = all};
      case Per::kGroup: return {.row = all, .run = group_};
      case Per::kChannel: {
        const simd::CellLayout channels = {.row = extent, .run = extent, .stretch = group_};
        if (channels.rows(count) >= kMinStretch) return channels;
        break;
      }
      case Per::kToken: break;
    }
    return {.row = all, .run = (kMinRow + extent - 1) / extent * extent};
  }

  // The most cells that a layout has, whatever the extent.
  size_t MaxCells(size_t count) const {
    switch (per_) {
      case Per::kBlock: return std::min<size_t>(count, 1);
      case Per::kGroup: return (count + group_ - 1) / group_;
      case Per::kChannel: return (count + kMinStretch - 2) / (kMinStretch - 1);
      case Per::kToken: break;
    }
    return (count + kMinRow - 1) / kMinRow;
  }

  // Fills scratch.scales and, unless symmetric, scratch.offsets, which it returns.
  const float* Widen(DType dtype, const void* scales, const void* minima, size_t cells, Scratch& scratch) const {
    scratch.scales.resize(cells);
    simd::WidenScales(dtype, scales, cells, scratch.scales.data());
    if (symmetric_) return nullptr;
    scratch.offsets.resize(cells);
    simd::WidenValues(dtype, minima, cells, scratch.offsets.data());
    return scratch.offsets.data();
  }

  int bits_;
  Per per_;
  size_t group_;
  bool symmetric_;
  CodeStreams codes_;
  Outliers outliers_;
};

constexpr std::string_view kExamples[] = {
    "quant(bits=10,per=token,group=64,symmetric=true,outliers=0,layout=packed)",
    "quant(bits=8,per=block)",
    "quant(bits=2,per=channel,group=64,symmetric=false)",
    "quant(bits=2,per=token,symmetric=false)",
    "quant(bits=3,per=group,group=128,symmetric=false,outliers=0.01)",
    "quant(bits=4,per=group,group=64)",
    "quant(bits=5,per=channel,group=4096,outliers=0.1,layout=bytes)",
    "quant(bits=6,per=token,layout=bytes)|zstd(level=1)",
    "quant(bits=7,per=group,group=32)",
    "quant(bits=9,per=channel,group=32,symmetric=false,layout=bytes)|zstd(level=1)",
    "quant(bits=11,per=block,symmetric=false)",
    "sparse(ratio=0.5)|quant(bits=12,per=group,group=512,outliers=0.005)"};
constexpr Parameter kParameters[] = {
    Parameter::Integer("bits", 8, simd::kMinUniformBits, simd::kMaxUniformBits, "of a code"),
    Parameter::Word("per", 2, "block|channel|token|group", "what shares a scale"),
    Parameter::IntegerOf("group", 64, "32|64|128|256|512|1024|2048|4096",
                         "values of a group; tokens of a channel that share a scale; groups of 32 are slow to encode, "
                         "at 1.4 to 2.9 GB/s"),
    Parameter::Flag("symmetric", true, "whether ranges lie evenly about 0; otherwise each scale comes with a minimum"),
    Parameter::Real("outliers", 0, 0, 0.1,
                    "the fraction of values, the largest, that is kept exactly; slow: it encodes at 1 to 1.5 GB/s"),
    Parameter::Word("layout", 0, "packed|bytes", "codes of fewer than 8 bits packed, or in a byte each"),
};

}  // namespace

extern constinit const CodecRow kQuant =
    RowOf<Quant>("quant", "uniform integers, one scale a block, channel, token or group", kExamples, kParameters);

}  // namespace kvcompress
