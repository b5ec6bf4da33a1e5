#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "core/base/half.h"
#include "core/base/status_macros.h"
#include "core/codec/registry.h"
#include "core/codec/rotary_parameters.h"
#include "core/codec/tensor/centered.h"
#include "core/codec/tensor/packed_codes.h"
#include "core/codec/tensor/sink_rows.h"
#include "core/codec/tensor/value_runs.h"
#include "core/simd/group_quant.h"
#include "core/simd/rotated_quant.h"
#include "core/simd/token_meter.h"

namespace kvcompress {
namespace {

// What a tile decodes to.
std::byte* DecodedOfThread() {
  alignas(64) thread_local std::byte decoded[4 * PackedCodes::kTile];
  return decoded;
}

// Sinks are coded row by row as int8.
constexpr simd::GroupQuantFormat SinkFormat(DType dtype) { return {.dtype = dtype, .bits = 8, .group = 64}; }
size_t SinkScaleBytes(size_t row) { return 2 * simd::GroupCount(64, row); }
size_t SinkCodeBytes(size_t row) { return simd::PackedBytes(8, 64, row); }

// Where in the streams the next values are.
template <typename Byte, typename Codes>
struct Cursor {
  Byte* scales;
  Codes codes;
  Byte* sink_scales = nullptr;
  Byte* sink_codes = nullptr;
};
using WriteCursor = Cursor<std::byte, PackedCodeWriter>;
using ReadCursor = Cursor<const std::byte, PackedCodeReader>;

size_t ScaleBytes(size_t row, size_t count) { return 2 * simd::RotatedRows(row, count); }
// Values that are coded together.
size_t TileOf(size_t row) { return PackedCodes::kTile / row * row; }

class Reader final : public RowReader {
 public:
  Reader(const simd::RotatedFormat& format, const SinkRows& sinks, const ReadCursor& from)
      : format_(format), sinks_(sinks), from_(from) {}

  void Read(size_t count, std::byte* values) override {
    const size_t width = DTypeSize(format_.dtype);
    sinks_.ForEachRun(format_.row, begin_, count, [&](size_t n, bool are_sinks) {
      const size_t tile = are_sinks ? format_.row : TileOf(format_.row);
      for (size_t at = 0; at < n; at += tile) ReadTile(std::min(tile, n - at), are_sinks, values + at * width);
      values += n * width;
    });
    begin_ += count;
  }

 private:
  void ReadTile(size_t count, bool is_sink, std::byte* values) {
    if (!is_sink) {
      simd::DequantizeRotated(format_, from_.scales, from_.codes.Next(count), count, values);
      from_.scales += ScaleBytes(format_.row, count);
      return;
    }
    simd::Dequantize(SinkFormat(format_.dtype), from_.sink_scales, from_.sink_codes, count, values);
    from_.sink_scales += SinkScaleBytes(count);
    from_.sink_codes += SinkCodeBytes(count);
  }

  const simd::RotatedFormat format_;
  const SinkRows sinks_;
  ReadCursor from_;
  size_t begin_ = 0;  // of the values that come next
};

// docs/format.md, "rotated". Streams: scales, codes; with sinks their place among tokens, and their scales and codes.
// The arithmetic is in simd/rotated_quant.h.
class Rotated final : public RowCodec {
 public:
  explicit Rotated(const StageSpec& stage)
      : bits_(static_cast<int>(stage.Int("bits"))),
        has_sinks_(stage.Int("sinks") > 0),
        sinks_(std::max<int64_t>(stage.Int("sinks") - stage.Int("start"), 0)) {}

  bool lossless() const override { return false; }
  bool is_fast() const override { return true; }
  bool tolerates_changing_values() const override {
    return !has_sinks_;
  }  // then no size depends on them or their place
  float max_magnitude() const override { return simd::kMaxRotatable; }
  uint32_t BlockElements(const TensorDesc& tensor) const override { return BlockOfUnits(RowLength(tensor)); }

  size_t stream_count() const override { return has_sinks_ ? 5 : 2; }
  void StreamBounds(const TensorDesc& tensor, size_t count, std::span<size_t> bounds) const override {
    const size_t row = RowLength(tensor);
    bounds[0] = ScaleBytes(row, count);
    bounds[1] = simd::PackedCodeBytes(bits_, count);
    if (!has_sinks_) return;
    const size_t rows = simd::RotatedRows(row, count);
    bounds[2] = SinkRows::kBytes;
    bounds[3] = rows * SinkScaleBytes(row);
    bounds[4] = rows * SinkCodeBytes(row);
  }

  bool measures() const override { return true; }
  Pieces takes_pieces() const override { return Pieces::kMany; }

  absl::Status Encode(const Block& block, std::span<StreamBuffer> streams, ErrorSums* sums) const override {
    const Block pieces{block.tensor, block.first, block.count, {}, {&block.values, 1}};
    return EncodePieces(pieces, streams, sums, nullptr);
  }

  absl::Status EncodePieces(const Block& block, std::span<StreamBuffer> streams, ErrorSums* sums,
                            simd::TokenMeter* tokens) const override {
    const TensorDesc& tensor = block.tensor;
    const size_t row = RowLength(tensor);
    const ValueRuns runs(row, DTypeSize(tensor.dtype), block.pieces);
    const SinkRows sinks = has_sinks_ ? SinkRows(tensor, row, block.first, static_cast<uint64_t>(sinks_)) : SinkRows();
    const size_t sink_values = sinks.Count(row, runs.count());
    const size_t count = runs.count() - sink_values;
    streams[0].size = ScaleBytes(row, count);
    streams[1].size = simd::PackedCodeBytes(bits_, count);
    if (has_sinks_) {
      sinks.Store(streams[2].data);
      streams[2].size = SinkRows::kBytes;
      streams[3].size = sink_values / row * SinkScaleBytes(row);
      streams[4].size = sink_values / row * SinkCodeBytes(row);
    }
    bool held = true;
    const auto encode = [&] { held = held && EncodeRuns(tensor, runs, sinks, streams, tokens); };
    const float small = tokens != nullptr ? simd::LargestOfSmall(tensor.dtype, runs.runs()) : 0;
    if (small > 0) {
      tokens->MeasureAgain(small, encode);
    } else {
      encode();
    }
    if (!held) return absl::InvalidArgumentError("");
    if (small > 0 || (tokens != nullptr && tokens->End())) {
      sums->Merge(tokens->sums());
    } else if (sums != nullptr) {
      ReadCursor from{streams[0].data, {bits_, streams[1].data, count}};
      if (has_sinks_) {
        from.sink_scales = streams[3].data;
        from.sink_codes = streams[4].data;
      }
      MeasureDecoded(tensor, runs, sinks, from, *sums, tokens);
    }
    return absl::OkStatus();
  }

  absl::Status Decode(const TensorDesc& tensor, std::span<const ByteSpan> streams,
                      MutableByteSpan values) const override {
    const size_t count = values.size() / DTypeSize(tensor.dtype);
    KVC_ASSIGN_OR_RETURN(const auto reader, Open(tensor, streams, count));
    reader->Read(count, values.data());
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<RowReader>> Open(const TensorDesc& tensor, std::span<const ByteSpan> streams,
                                                  size_t all) const override {
    const size_t row = RowLength(tensor);
    SinkRows sinks;
    if (has_sinks_) {
      KVC_ASSIGN_OR_RETURN(sinks, SinkRows::Load(streams[2]));
    }
    const size_t sink_values = sinks.Count(row, all);
    if (sink_values % row != 0) return absl::DataLossError("rotated: a short row is a sink");
    const ByteSpan scales = streams[0];
    if (scales.size() != ScaleBytes(row, all - sink_values)) {
      return absl::DataLossError("rotated: scales have the wrong size");
    }
    if (!AreFinite(scales)) return absl::DataLossError("rotated: scale is not a finite number");
    if (streams[1].size() != simd::PackedCodeBytes(bits_, all - sink_values)) {
      return absl::DataLossError("codes have the wrong size");
    }
    ReadCursor from{scales.data(), {bits_, streams[1].data(), all - sink_values}};
    if (has_sinks_) {
      if (streams[3].size() != sink_values / row * SinkScaleBytes(row) ||
          streams[4].size() != sink_values / row * SinkCodeBytes(row)) {
        return absl::DataLossError("rotated: sinks have the wrong size");
      }
      from.sink_scales = streams[3].data();
      from.sink_codes = streams[4].data();
    }
    return std::make_unique<Reader>(Format(tensor), sinks, from);
  }

 private:
  simd::RotatedFormat Format(const TensorDesc& tensor) const {
    return {.dtype = tensor.dtype, .bits = bits_, .row = RowLength(tensor)};
  }

  static bool AreFinite(ByteSpan scales) {
    bool are_finite = true;
    for (size_t i = 0; i < scales.size(); i += 2) {
      are_finite &= simd::IsFiniteRotatedScale(LoadLE<uint16_t>(scales.data() + i));
    }
    return are_finite;
  }
  // False where a value is refused.
  bool EncodeRuns(const TensorDesc& tensor, const ValueRuns& runs, const SinkRows& sinks,
                  std::span<const StreamBuffer> streams, simd::TokenMeter* tokens) const {
    WriteCursor to{streams[0].data, {bits_, streams[1].data}};
    if (has_sinks_) {
      to.sink_scales = streams[3].data;
      to.sink_codes = streams[4].data;
    }
    const size_t width = DTypeSize(tensor.dtype);
    const size_t row = RowLength(tensor);
    size_t begin = 0;
    bool held = true;
    for (const simd::ValueRun& run : runs.runs()) {
      const auto* values = static_cast<const std::byte*>(run.values);
      sinks.ForEachRun(row, begin, run.count, [&](size_t count, bool are_sinks) {
        const size_t tile = are_sinks ? row : TileOf(row);
        for (size_t at = 0; at < count && held; at += tile) {
          held = EncodeTile(tensor, values + at * width, std::min(tile, count - at), are_sinks, to, tokens);
        }
        values += count * width;
      });
      if (!held) return false;
      begin += run.count;
    }
    to.codes.Finish();
    return true;
  }

  bool EncodeTile(const TensorDesc& tensor, const std::byte* values, size_t count, bool is_sink, WriteCursor& to,
                  simd::TokenMeter* tokens) const {
    const DType dtype = tensor.dtype;
    std::byte* const decoded = tokens == nullptr ? nullptr : DecodedOfThread();
    if (!is_sink) {
      if (!simd::QuantizeRotated(Format(tensor), values, count, to.scales, to.codes.next(), decoded)) {
        return false;
      }
      to.scales += ScaleBytes(RowLength(tensor), count);
      to.codes.Take(count);
    } else {
      const auto format = SinkFormat(dtype);
      if (simd::FindOutOfRange(dtype, values, count, max_magnitude()) < count ||
          !simd::scalar::Quantize(format, values, count, to.sink_scales, to.sink_codes, nullptr)) {
        return false;
      }
      if (decoded != nullptr) simd::Dequantize(format, to.sink_scales, to.sink_codes, count, decoded);
      to.sink_scales += SinkScaleBytes(count);
      to.sink_codes += SinkCodeBytes(count);
    }
    if (tokens != nullptr) tokens->AddDecoded(dtype, values, decoded, count);
    return true;
  }

  // The figures of a block that is encoded, from what it decodes to.
  void MeasureDecoded(const TensorDesc& tensor, const ValueRuns& runs, const SinkRows& sinks, ReadCursor& from,
                      ErrorSums& sums, simd::TokenMeter* tokens) const {
    const size_t width = DTypeSize(tensor.dtype);
    std::vector<std::byte> values, decoded(runs.count() * width);
    for (const simd::ValueRun& run : runs.runs()) {
      const auto* begin = static_cast<const std::byte*>(run.values);
      values.insert(values.end(), begin, begin + run.count * width);
    }
    Reader(Format(tensor), sinks, from).Read(runs.count(), decoded.data());
    if (tokens == nullptr) {
      return simd::MeasureErrors(tensor.dtype, values.data(), decoded.data(), runs.count(), sums);
    }
    simd::MeasureTokensAgain(tensor.dtype, values.data(), decoded.data(), runs.count(), *tokens);
    sums.Merge(tokens->sums());
  }

  int bits_;
  bool has_sinks_;
  int64_t sinks_;  // tokens of a sequence that are some
};

MadeCodec<TensorCodec> MakeRotated(const CodecArgs& args) {
  auto rotated = std::make_unique<Rotated>(args.stage);
  if (args.stage.Int("mean") == 0) return rotated;
  return Centered(args.stage, std::move(rotated));
}

absl::Status Check(const StageSpec& stage) {
  if (stage.Number("theta") == 0 || stage.Int("mean") == 1) return CheckRotaryOf(stage);
  return absl::InvalidArgumentError("rotated: theta goes with mean=channel");
}

constexpr std::string_view kExamples[] = {
    "rotated(bits=4)",
    "rotated(bits=3)|rans",
    "rotated(bits=2)",
    "rotated(bits=4,sinks=4)",
    "rotated(bits=3,sinks=16,start=12)",
    "rotated(bits=4,sinks=4,mean=channel,theta=10000)",
    "rotated(bits=4,mean=channel,theta=500000,rotary=interleaved,rotary_dims=32)|rans",
    "rotated(bits=3,mean=channel,theta=500000,scaling=llama3,factor=32,low=0.5,high=6,original=4096)",
    "rotated(bits=4,mean=channel,theta=10000,scaling=linear,factor=2)"};
constexpr Parameter kParameters[] = {
    Parameter::IntegerOf("bits", 4, "2|3|4", "of a code"),
    Parameter::Integer("sinks", 0, 0, 16, "tokens at a sequence's begin, which get 8 bits").LeftOut(),
    rotary_parameters::kStart,
    Parameter::Word("mean", 0, "none|channel",
                    "whether a channel's mean over a block's tokens is kept apart; slow: it encodes at 1.4 to 1.8 GB/s")
        .LeftOut(),
    rotary_parameters::kTheta,
    rotary_parameters::kPairs,
    Parameter::Integer("rotary_dims", 0, 0, 1024, "channels of a head that turn, the first; 0: all").LeftOut(),
    rotary_parameters::kScaling,
    rotary_parameters::kFactor,
    rotary_parameters::kLow,
    rotary_parameters::kHigh,
    rotary_parameters::kOriginal};

}  // namespace

extern constinit const CodecRow kRotated = {
    .name = "rotated",
    .summary =
        "2 to 4 bits of a Gaussian source: rows rotated by signs and Hadamard transforms, one 16-bit scale a row",
    .parameters = kParameters,
    .examples = kExamples,
    .needs_place = true,
    .has_compact_frames = true,
    .check = Check,
    .make_tensor_codec = MakeRotated};

}  // namespace kvcompress
