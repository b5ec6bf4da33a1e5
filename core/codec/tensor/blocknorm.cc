#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>

#include "core/base/half.h"
#include "core/base/status_macros.h"
#include "core/codec/registry.h"
#include "core/codec/tensor/code_streams.h"
#include "core/codec/tensor/index_list.h"
#include "core/codec/tensor/largest.h"
#include "core/simd/uniform_quant.h"

namespace kvcompress {
namespace {

// Buffers that a thread uses again for every block.
struct Scratch {
  Buffer min, max;
  Buffer codes;
  std::vector<uint16_t> scale_bits;
  std::vector<float> scales;
  std::vector<float> energies;
  Buffer exact;                   // a mask of the cells with exact scales
  std::vector<uint32_t> indices;  // of these, of a block that is decoded

  static Scratch& OfThread() {
    thread_local Scratch scratch;
    return scratch;
  }
};

// docs/format.md, "blocknorm". Streams: scales as those of quant; which cells have exact ones; these in F32; codes (one
// or two streams).
class BlockNorm final : public TensorCodec {
 public:
  explicit BlockNorm(const StageSpec& stage)
      : block_(static_cast<size_t>(stage.Int("block"))),
        top_(stage.Number("topk")),
        bits_(static_cast<int>(stage.Int("bits"))),
        codes_(bits_, true) {}

  bool lossless() const override { return false; }
  bool is_fast() const override { return true; }
  float max_magnitude() const override { return Format(DType::kF32).max_magnitude(); }
  size_t stream_count() const override { return kFirstCodeStream + codes_.count(); }

  void StreamBounds(const TensorDesc&, size_t count, std::span<size_t> bounds) const override {
    const size_t cells = (count + kMinRow / 2 - 1) / (kMinRow / 2);  // a row of kMinRow + 1 values may have two
    bounds[0] = kRowBytes + 2 * cells;
    bounds[1] = MaxIndexListBytes(ExactCells(cells));
    bounds[2] = 4 * ExactCells(cells);
    codes_.Bounds(count, bounds.subspan(kFirstCodeStream));
  }

  absl::Status Encode(const Block& block, std::span<StreamBuffer> streams, ErrorSums*) const override {
    Scratch& scratch = Scratch::OfThread();
    const TensorDesc& tensor = block.tensor;
    const ByteSpan values = block.values;
    const DType dtype = tensor.dtype;
    const size_t count = block.count;
    const auto extent = static_cast<size_t>(
        std::clamp<uint64_t>(tensor.shape.empty() ? 1 : tensor.shape.back(), 1, std::max<size_t>(count, 1)));
    const simd::CellLayout layout = Layout(extent);
    const size_t cells = layout.cells(count);
    const size_t width = DTypeSize(dtype);
    scratch.min.Resize(cells * width);
    scratch.max.Resize(cells * width);
    scratch.scale_bits.resize(cells);
    simd::CellRanges(dtype, layout, values.data(), count, scratch.min.data(), scratch.max.data());
    if (!simd::CellScales(Format(dtype), scratch.min.data(), scratch.max.data(), cells, scratch.scale_bits.data())) {
      return absl::InvalidArgumentError("");
    }
    scratch.scales.resize(cells);
    simd::WidenScales(dtype, scratch.scale_bits.data(), cells, scratch.scales.data());
    scratch.energies.resize(cells);
    simd::CellEnergies(dtype, layout, values.data(), count, scratch.energies.data());
    const auto energies = std::as_bytes(std::span(scratch.energies));  // none is negative or NaN
    KVC_RETURN_IF_ERROR(MarkLargest(DType::kF32, energies, ExactCells(cells), scratch.exact));

    StoreLE(static_cast<uint32_t>(extent), streams[0].data);
    if (cells > 0) std::memcpy(streams[0].data + kRowBytes, scratch.scale_bits.data(), 2 * cells);
    streams[0].size = kRowBytes + 2 * cells;
    const ByteSpan exact = scratch.exact.span();
    streams[1].size = WriteIndexList(exact, streams[1].data);
    std::byte* out = streams[2].data;
    ForEachMarked(exact, [&](uint32_t cell) {
      const float low = std::fabs(LoadAsF32(dtype, scratch.min.data(), cell));
      const float high = std::fabs(LoadAsF32(dtype, scratch.max.data(), cell));
      scratch.scales[cell] = std::max(low, high) / static_cast<float>(Format(dtype).max_code());
      std::memcpy(out, &scratch.scales[cell], sizeof(float));
      out += sizeof(float);
    });
    streams[2].size = static_cast<size_t>(out - streams[2].data);
    const std::span<StreamBuffer> code_streams = streams.subspan(kFirstCodeStream);
    const simd::CodeBytes codes = codes_.Begin(count, code_streams, scratch.codes);
    simd::UniformQuantize(Format(dtype), layout, values.data(), count, scratch.scales.data(), nullptr, codes);
    codes_.Finish(count, codes, code_streams);
    return absl::OkStatus();
  }

  absl::Status Decode(const TensorDesc& tensor, std::span<const ByteSpan> streams,
                      MutableByteSpan values) const override {
    const DType dtype = tensor.dtype;
    Scratch& scratch = Scratch::OfThread();
    const size_t count = values.size() / DTypeSize(dtype);
    if (streams[0].size() < kRowBytes) return absl::DataLossError("blocknorm: scales have the wrong size");
    const size_t extent = LoadLE<uint32_t>(streams[0].data());
    if (extent < 1 || extent > std::max<size_t>(count, 1)) return absl::DataLossError("blocknorm: row has no length");
    const simd::CellLayout layout = Layout(extent);
    const size_t cells = layout.cells(count);
    const ByteSpan scales = streams[0].subspan(kRowBytes);
    if (scales.size() != 2 * cells || streams[2].size() != 4 * ExactCells(cells)) {
      return absl::DataLossError("blocknorm: scales have the wrong size");
    }
    for (size_t i = 0; i < cells; ++i) {
      if (LoadLE<uint16_t>(scales.data() + 2 * i) > simd::MaxScaleBits(dtype)) return ScaleFault();
    }
    scratch.scales.resize(cells);
    simd::WidenScales(dtype, scales.data(), cells, scratch.scales.data());
    KVC_RETURN_IF_ERROR(ReadIndexList(streams[1], ExactCells(cells), cells, scratch.indices));
    for (size_t i = 0; i < scratch.indices.size(); ++i) {
      const float scale = LoadAsF32(DType::kF32, streams[2].data(), i);
      if (!(scale >= 0 && scale <= MaxFinite(DType::kF32))) return ScaleFault();
      scratch.scales[scratch.indices[i]] = scale;
    }
    simd::ConstCodeBytes codes;
    KVC_RETURN_IF_ERROR(codes_.Open(count, streams.subspan(kFirstCodeStream), scratch.codes, codes));
    simd::UniformDequantize(Format(dtype), layout, codes, count, scratch.scales.data(), nullptr, values.data());
    return absl::OkStatus();
  }

 private:
  static constexpr size_t kRowBytes = 4;  // the length of rows
  static constexpr size_t kFirstCodeStream = 3;
  static constexpr size_t kMinRow = 32;  // shorter ones are joined

  static absl::Status ScaleFault() { return absl::DataLossError("blocknorm: scale is not a finite number"); }

  simd::UniformFormat Format(DType dtype) const { return {.dtype = dtype, .bits = bits_, .symmetric = true}; }
  simd::CellLayout Layout(size_t extent) const {
    return {.row = (kMinRow + extent - 1) / extent * extent, .run = block_};
  }
  size_t ExactCells(size_t cells) const {
    return std::min(cells, std::max<size_t>(1, static_cast<size_t>(top_ * static_cast<double>(cells))));
  }

  size_t block_;
  double top_;
  int bits_;
  CodeStreams codes_;
};

constexpr std::string_view kExamples[] = {"blocknorm(block=128,topk=0.02,bits=10)",
                                          "blocknorm(block=32,topk=0.5,bits=4)",
                                          "blocknorm(block=64,topk=0,bits=8)|zstd(level=1)"};
constexpr Parameter kParameters[] = {
    Parameter::IntegerOf("block", 128, "32|64|128|256", "values that share a scale"),
    Parameter::Real("topk", 0.02, 0, 1,
                    "the fraction of blocks, those of most energy, with exact scales; slow where it is large: it "
                    "encodes at 1.4 GB/s"),
    Parameter::Integer("bits", 10, simd::kMinUniformBits, simd::kMaxUniformBits, "of a code"),
};

}  // namespace

extern constinit const CodecRow kBlockNorm =
    RowOf<BlockNorm>("blocknorm",
                     "uniform integers of normalized blocks, those of most energy with exact scales; "
                     "slow to encode, at 1.5 to 2.3 GB/s",
                     kExamples, kParameters);

}  // namespace kvcompress
