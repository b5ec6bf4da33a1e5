#include "core/codec/tensor/centered.h"

#include <algorithm>
#include <utility>

#include "core/base/status_macros.h"
#include "core/codec/tensor/channel_means.h"
#include "core/codec/tensor/sink_rows.h"
#include "core/simd/rotated_quant.h"
#include "core/simd/segment_values.h"
#include "core/simd/uniform_quant.h"

namespace kvcompress {
namespace {

// Buffers that a thread uses again for every block.
Buffer& CenteredOfThread() {
  thread_local Buffer centered;
  return centered;
}

// One more stream has the place among tokens, and the means of each run of tokens that are no sinks.
class CenteredCodec final : public TensorCodec {
 public:
  CenteredCodec(const StageSpec& stage, std::unique_ptr<TensorCodec> rotated)
      : rotated_(std::move(rotated)),
        sinks_(static_cast<uint64_t>(std::max<int64_t>(stage.Int("sinks") - stage.Int("start"), 0))),
        means_(stage.Number("theta"), stage.Choice<simd::RotaryPairs>("rotary"),
               static_cast<size_t>(stage.Int("rotary_dims")), static_cast<uint64_t>(stage.Int("start"))) {}

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

  absl::Status Encode(const Block& block, std::span<StreamBuffer> streams, ErrorSums*) const override {
    const DType dtype = block.tensor.dtype;
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
    simd::WidenValues(dtype, block.values.data(), block.count, to);
    // The F16 of what is not finite is a number on some CPUs, above all that are.
    if (!(simd::LargestMagnitude(to, block.count) <= std::min(max_magnitude(), MaxFinite(dtype)))) {
      return absl::InvalidArgumentError("");
    }
    ForEachRun(place, heads, row, block.count, [&](const ChannelMeans::Run& run, size_t at, bool has_means) {
      if (!has_means) return;
      means_.Remove(run, dtype, to + at, out);
      out += run.means_bytes();
    });
    means.size = static_cast<size_t>(out - means.data);
    const TensorDesc tensor = AsF32(block.tensor);
    return rotated_->Encode({tensor, block.first, block.count, centered.span()}, streams, nullptr);
  }

  absl::Status Decode(const TensorDesc& tensor, std::span<const ByteSpan> streams,
                      MutableByteSpan values) const override {
    const DType dtype = tensor.dtype;
    const size_t row = RowLength(tensor);
    const size_t all = values.size() / DTypeSize(dtype);
    ByteSpan means = streams[rotated_->stream_count()];
    if (means.size() < kFixedBytes) return absl::DataLossError("rotated: means have the wrong size");
    KVC_ASSIGN_OR_RETURN(const SinkRows place, SinkRows::Load(means.first(SinkRows::kBytes)));
    const auto heads = LoadLE<uint64_t>(means.data() + SinkRows::kBytes);
    means = means.subspan(kFixedBytes);
    if (heads > TokenLayout::kMaxChannels || (heads > 0 && all % row != 0)) {
      return absl::DataLossError("rotated: means of rows that are not there");
    }
    Buffer& centered = CenteredOfThread();
    centered.Resize(4 * all);
    KVC_RETURN_IF_ERROR(rotated_->Decode(AsF32(tensor), streams, centered.span()));
    auto* const from = reinterpret_cast<float*>(centered.data());
    absl::Status status;
    ForEachRun(place, heads, row, all, [&](const ChannelMeans::Run& run, size_t at, bool has_means) {
      if (!has_means || !status.ok()) return;
      if (means.size() < run.means_bytes()) {
        status = absl::DataLossError("rotated: means are cut off");
        return;
      }
      status = means_.Add(run, dtype, means.data(), from + at);
      means = means.subspan(run.means_bytes());
    });
    KVC_RETURN_IF_ERROR(status);
    if (!means.empty()) return absl::DataLossError("rotated: means are left");
    simd::NarrowLimited(dtype, from, all, values.data());
    return absl::OkStatus();
  }

 private:
  static constexpr size_t kFixedBytes = SinkRows::kBytes + 8;

  static TensorDesc AsF32(TensorDesc tensor) {
    tensor.dtype = DType::kF32;
    return tensor;
  }

  // Calls visit(run, first value, whether it has means) for the runs of a block.
  template <class Visit>
  static void ForEachRun(const SinkRows& place, uint64_t heads, size_t row, size_t count, Visit visit) {
    size_t at = 0;
    place.ForEachRun(row, 0, count, [&](size_t n, bool are_sinks) {
      const ChannelMeans::Run run{n / row, row, static_cast<size_t>(heads), place.RowInSequence(at / row)};
      visit(run, at, heads > 0 && !are_sinks);
      at += n;
    });
  }

  const std::unique_ptr<TensorCodec> rotated_;
  const uint64_t sinks_;
  const ChannelMeans means_;
};

}  // namespace

std::unique_ptr<TensorCodec> Centered(const StageSpec& stage, std::unique_ptr<TensorCodec> rotated) {
  return std::make_unique<CenteredCodec>(stage, std::move(rotated));
}

}  // namespace kvcompress
