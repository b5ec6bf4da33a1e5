#include "core/codec/tensor/centered.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "core/base/status_macros.h"
#include "core/codec/rotary_parameters.h"
#include "core/codec/tensor/channel_means.h"
#include "core/codec/tensor/sink_rows.h"
#include "core/simd/error_sums.h"
#include "core/simd/rotated_quant.h"
#include "core/simd/segment_values.h"
#include "core/simd/token_meter.h"

namespace kvcompress {
namespace {

// Buffers that a thread uses again for every block.
Buffer& CenteredOfThread() {
  thread_local Buffer centered;
  return centered;
}

constexpr size_t kTile = 4096;  // values that are decoded together

// One more stream has the place among tokens, and the means of each run of tokens that are no sinks.
class CenteredCodec final : public TensorCodec {
 public:
  CenteredCodec(const StageSpec& stage, std::unique_ptr<RowCodec> rotated)
      : rotated_(std::move(rotated)),
        sinks_(static_cast<uint64_t>(std::max<int64_t>(stage.Int("sinks") - stage.Int("start"), 0))),
        means_(RotaryOf(stage)) {}

  bool lossless() const override { return false; }
  float max_magnitude() const override {
    return rotated_->max_magnitude() / 4;
  }  // then what is turned and centered is held
  uint32_t BlockElements(const TensorDesc& tensor) const override { return rotated_->BlockElements(tensor); }
  size_t stream_count() const override { return rotated_->stream_count() + 1; }

  void StreamBounds(const TensorDesc& tensor, size_t count, std::span<size_t> bounds) const override {
    rotated_->StreamBounds(AsF32(tensor), count, bounds);
    const size_t row = RowLength(tensor);
    bounds[rotated_->stream_count()] = kFixedBytes + simd::RotatedRows(row, count) * (1 + 2 * row);
  }

  bool measures() const override { return true; }
  Pieces takes_pieces() const override { return Pieces::kOne; }

  absl::Status Encode(const Block& block, std::span<StreamBuffer> streams, ErrorSums* sums) const override {
    Block pieces{block.tensor, block.first, block.count, {}, {&block.values, 1}};
    pieces.rotary = block.rotary;
    return EncodePieces(pieces, streams, sums, nullptr);
  }

  absl::Status EncodePieces(const Block& block, std::span<StreamBuffer> streams, ErrorSums* sums,
                            simd::TokenMeter* tokens) const override {
    const DType dtype = block.tensor.dtype;
    const ByteSpan values = block.pieces[0];
    const size_t row = RowLength(block.tensor);
    const TokenLayout layout = TokenLayoutOf(block.tensor);
    SinkRows place(block.tensor, row, block.first, sinks_);
    if (block.count % row != 0) place = {};
    const uint64_t heads = place.has_sequences() ? layout.channels / row : 0;
    StreamBuffer& means = streams[rotated_->stream_count()];
    place.Store(means.data);
    StoreLE(heads, means.data + SinkRows::kBytes);
    std::byte* out = means.data + kFixedBytes;
    Buffer& centered = CenteredOfThread();
    centered.Resize(4 * block.count);
    auto* const to = reinterpret_cast<float*>(centered.data());
    const float largest = simd::LoadScaled(dtype, values.data(), block.count, 1, to);
    // The F16 of what is not finite is a number on some CPUs, above all that are.
    if (!(largest <= std::min(max_magnitude(), MaxFinite(dtype)))) {
      return absl::InvalidArgumentError("");
    }
    ForEachRun(place, heads, row, block.count, [&](const ChannelMeans::Run& run, size_t at, size_t, bool has_means) {
      if (!has_means) return;
      means_.Remove(run, dtype, to + at, out, block.rotary);
      out += run.means_bytes();
    });
    means.size = static_cast<size_t>(out - means.data);
    const TensorDesc tensor = AsF32(block.tensor);
    KVC_RETURN_IF_ERROR(rotated_->Encode({tensor, block.first, block.count, centered.span()}, streams, nullptr));
    return sums != nullptr ? Measure(block, values, streams, *sums, tokens) : absl::OkStatus();
  }

  absl::Status Decode(const TensorDesc& tensor, std::span<const ByteSpan> streams,
                      MutableByteSpan values) const override {
    const DType dtype = tensor.dtype;
    return DecodeTiles(tensor, streams, values.size() / DTypeSize(dtype), [&](size_t at, size_t n, const float* tile) {
      simd::NarrowLimited(dtype, tile, n, values.data() + at * DTypeSize(dtype));
    });
  }

 private:
  static constexpr size_t kFixedBytes = SinkRows::kBytes + 8;

  static TensorDesc AsF32(TensorDesc tensor) {
    tensor.dtype = DType::kF32;
    return tensor;
  }

  // Calls visit(first value, count, values as F32) for the tiles of a block of `all` values, not yet limited to the
  // dtype.
  template <class Visit>
  absl::Status DecodeTiles(const TensorDesc& tensor, std::span<const ByteSpan> streams, size_t all, Visit visit) const {
    const DType dtype = tensor.dtype;
    const size_t row = RowLength(tensor);
    ByteSpan means = streams[rotated_->stream_count()];
    if (means.size() < kFixedBytes) return absl::DataLossError("rotated: means have the wrong size");
    KVC_ASSIGN_OR_RETURN(const SinkRows place, SinkRows::Load(means.first(SinkRows::kBytes)));
    const auto heads = LoadLE<uint64_t>(means.data() + SinkRows::kBytes);
    means = means.subspan(kFixedBytes);
    if (heads > TokenLayout::kMaxChannels || (heads > 0 && all % row != 0)) {
      return absl::DataLossError("rotated: means of rows that are not there");
    }
    KVC_ASSIGN_OR_RETURN(const auto reader, rotated_->Open(AsF32(tensor), streams, all));
    alignas(64) float tile[kTile];
    absl::Status status;
    ForEachRun(place, heads, row, all, [&](const ChannelMeans::Run& run, size_t at, size_t count, bool has_means) {
      if (has_means && status.ok()) status = BeginRun(run, dtype, means);
      if (!status.ok()) return;
      for (size_t done = 0; done < count;) {
        const size_t n = std::min(kTile / row * row, count - done);
        reader->Read(n, reinterpret_cast<std::byte*>(tile));
        if (has_means) means_.Add(run, done / row, n / row, tile);
        visit(at + done, n, tile);
        done += n;
      }
    });
    KVC_RETURN_IF_ERROR(status);
    return means.empty() ? absl::OkStatus() : absl::DataLossError("rotated: means are left");
  }

  // Takes the means of a run from the rest of their stream.
  absl::Status BeginRun(const ChannelMeans::Run& run, DType dtype, ByteSpan& means) const {
    if (means.size() < run.means_bytes()) return absl::DataLossError("rotated: means are cut off");
    const ByteSpan own = means.first(run.means_bytes());
    means = means.subspan(own.size());
    return means_.Begin(run, dtype, own.data());
  }

  // The figures of a block that is encoded, from what it decodes to.
  absl::Status Measure(const Block& block, ByteSpan values, std::span<const StreamBuffer> encoded, ErrorSums& sums,
                       simd::TokenMeter* tokens) const {
    const DType dtype = block.tensor.dtype;
    const size_t width = DTypeSize(dtype);
    std::vector<ByteSpan> streams;
    for (const StreamBuffer& stream : encoded) streams.emplace_back(stream.data, stream.size);
    if (tokens != nullptr) {
      absl::Status status;
      const auto add = [&] {
        alignas(64) std::byte decoded[4 * kTile];
        status = DecodeTiles(block.tensor, streams, block.count, [&](size_t at, size_t n, const float* tile) {
          const std::byte* const own = values.data() + at * width;
          simd::NarrowLimited(dtype, tile, n, decoded);
          tokens->AddDecoded(dtype, own, decoded, n);
        });
      };
      const float small = simd::LargestOfSmall(dtype, values.data(), block.count).value_or(0);
      if (small > 0) {
        tokens->MeasureAgain(small, add);
      } else {
        add();
      }
      KVC_RETURN_IF_ERROR(status);
      if (small > 0 || tokens->End()) {
        sums.Merge(tokens->sums());
        return absl::OkStatus();
      }
    }
    std::vector<std::byte> decoded(values.size());
    KVC_RETURN_IF_ERROR(Decode(block.tensor, streams, decoded));
    if (tokens == nullptr) {
      simd::MeasureErrors(dtype, values.data(), decoded.data(), block.count, sums);
    } else {
      simd::MeasureTokensAgain(dtype, values.data(), decoded.data(), block.count, *tokens);
      sums.Merge(tokens->sums());
    }
    return absl::OkStatus();
  }

  // Calls visit(run, first value, count, whether it has means) for the runs of a block.
  template <class Visit>
  static void ForEachRun(const SinkRows& place, uint64_t heads, size_t row, size_t count, Visit visit) {
    size_t at = 0;
    place.ForEachRun(row, 0, count, [&](size_t n, bool are_sinks) {
      const ChannelMeans::Run run{n / row, row, static_cast<size_t>(heads), place.RowInSequence(at / row)};
      visit(run, at, n, heads > 0 && !are_sinks);
      at += n;
    });
  }

  const std::unique_ptr<RowCodec> rotated_;
  const uint64_t sinks_;
  const ChannelMeans means_;
};

}  // namespace

std::unique_ptr<TensorCodec> Centered(const StageSpec& stage, std::unique_ptr<RowCodec> rotated) {
  return std::make_unique<CenteredCodec>(stage, std::move(rotated));
}

}  // namespace kvcompress
