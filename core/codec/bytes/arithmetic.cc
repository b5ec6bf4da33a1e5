#include <algorithm>
#include <array>

#include "core/codec/histogram.h"
#include "core/codec/range_coder.h"
#include "core/codec/registry.h"

namespace kvcompress {
namespace {

// Probabilities of the byte values, that follow the bytes coded so far at certain places of the stream: between these
// they are constant, which lets the lanes work side by side.
class ByteModel {
 public:
  static constexpr size_t kMaxStep = 4096;  // the most bytes between two changes

  ByteModel() {
    for (uint32_t s = 0; s <= 256; ++s) starts_[s] = s << (kRangeBits - 8);
    IndexStarts();
  }

  // Where the probabilities change next, for a stream that is coded up to `at`.
  static size_t NextChange(size_t at) {
    if (at >= kMaxStep) return at + kMaxStep;
    return at == 0 ? kMinStep : 2 * at;
  }

  uint32_t start(size_t symbol) const { return starts_[symbol]; }
  uint32_t size(size_t symbol) const { return starts_[symbol + 1] - starts_[symbol]; }

  // The byte value that covers `at`.
  size_t Find(uint32_t at) const {
    size_t symbol = index_[at >> kIndexShift];
    while (starts_[symbol + 1] <= at) ++symbol;
    return symbol;
  }

  // Learns the `step` bytes since the last change.
  void Change(ByteSpan step) {
    const Histogram seen = CountBytes(step);
    const bool halve = total_ > kMaxTotal;
    total_ = 0;
    for (size_t s = 0; s < 256; ++s) {
      counts_[s] = (halve ? counts_[s] / 2 : counts_[s]) + seen[s];
      total_ += counts_[s];
    }
    // One unit for each value, so that all can be coded, and the others in proportion to the counts.
    constexpr uint64_t kShared = (1 << kRangeBits) - 256;
    uint64_t below = 0;
    uint32_t shared = 0;
    for (uint32_t s = 0; s < 256; ++s) {
      starts_[s] = s + shared;
      if (counts_[s] == 0) continue;
      below += counts_[s];
      shared = static_cast<uint32_t>(below * kShared / total_);
    }
    IndexStarts();
  }

 private:
  static constexpr size_t kMinStep = 16;
  static constexpr uint32_t kMaxTotal = 1 << 16;
  static constexpr int kIndexShift = 4;

  void IndexStarts() {
    for (size_t s = 0, i = 0; s < 256; ++s) {
      for (; i << kIndexShift < starts_[s + 1]; ++i) index_[i] = static_cast<uint8_t>(s);
    }
  }

  Histogram counts_ = {};
  uint32_t total_ = 0;
  std::array<uint32_t, 257> starts_;
  std::array<uint8_t, 1 << (kRangeBits - kIndexShift)> index_;  // the value that covers a multiple of 2^kIndexShift
};

// docs/format.md, "arithmetic": lanes of a range coder, with one model for all.
class Arithmetic final : public ByteCodec {
 public:
  absl::StatusOr<size_t> Encode(ByteSpan raw, MutableByteSpan encoded) const override {
    if (raw.empty() || !SeemsToShrink(raw)) return size_t{0};
    const size_t lanes = RangeLanesFor(raw.size());
    RangeEncoders encoders = BeginRangeLanes(lanes, encoded.size());
    ByteModel model;
    for (size_t at = 0; at < raw.size();) {
      const size_t end = std::min(raw.size(), ByteModel::NextChange(at));
      for (size_t i = at; i < end; ++i) {
        const auto symbol = std::to_integer<size_t>(raw[i]);
        encoders[i % lanes].Encode(model.start(symbol), model.size(symbol));
      }
      model.Change(raw.subspan(at, end - at));
      at = end;
    }
    return FinishRangeLanes(lanes, encoders, encoded);
  }

  absl::Status Decode(ByteSpan encoded, MutableByteSpan raw) const override {
    const size_t lanes = RangeLanesFor(raw.size());
    RangeDecoders decoders;
    if (!ReadRangeLanes(encoded, lanes, decoders)) {
      return absl::DataLossError("arithmetic: lanes do not fit their stream");
    }
    ByteModel model;
    for (size_t at = 0; at < raw.size();) {
      const size_t end = std::min(raw.size(), ByteModel::NextChange(at));
      // In memory of its own, which the model learns from: someone else may write to `raw`.
      std::array<std::byte, ByteModel::kMaxStep> step;
      const MutableByteSpan run = std::span(step).first(end - at);
      if (lanes == 1) {
        DecodeRun<1>(model, decoders, run);
      } else {
        DecodeRun<kRangeLanes>(model, decoders, run);
      }
      std::ranges::copy(run, raw.data() + at);
      model.Change(run);
      at = end;
    }
    if (!EndRangeLanes(lanes, decoders)) return absl::DataLossError("arithmetic: stream does not decode to its size");
    return absl::OkStatus();
  }

 private:
  // Bytes from a multiple of `lanes` on, with constant probabilities.
  template <size_t kLanes>
  static void DecodeRun(const ByteModel& model, RangeDecoders& decoders, MutableByteSpan raw) {
    RangeDecoders own = decoders;  // in registers, where the bytes written cannot be part of them
    const auto decode = [&](RangeDecoder& decoder, std::byte& byte) {
      const size_t symbol = model.Find(decoder.Peek());
      decoder.Consume(model.start(symbol), model.size(symbol));
      byte = static_cast<std::byte>(symbol);
    };
    size_t i = 0;
    for (; i + kLanes <= raw.size(); i += kLanes) {
      for (size_t lane = 0; lane < kLanes; ++lane) decode(own[lane], raw[i + lane]);
    }
    for (size_t lane = 0; i < raw.size(); ++lane, ++i) decode(own[lane], raw[i]);
    decoders = own;
  }
};

constexpr std::string_view kExamples[] = {"raw|arithmetic"};

}  // namespace

extern constinit const CodecRow kArithmetic =
    RowOf<Arithmetic>("arithmetic", "adaptive range coder over each stream; small and slow", kExamples);

}  // namespace kvcompress
