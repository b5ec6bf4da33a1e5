#include <algorithm>
#include <array>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "core/codec/registry.h"
#include "core/simd/group_quant.h"

namespace kvcompress {
namespace {

// Pieces as runs of whole groups: a group that lies in more than one piece is put together in a place of its own.
class Runs {
 public:
  Runs(size_t group, size_t width) : width_(width), group_bytes_(group * width) {}

  void Add(ByteSpan piece) {
    bytes_ += piece.size();
    if (joined_ > 0) {
      const size_t take = std::min(group_bytes_ - joined_, piece.size());
      Join(piece.first(take));
      piece = piece.subspan(take);
      if (joined_ == group_bytes_) EndJoint();
    }
    const size_t whole = piece.size() / group_bytes_ * group_bytes_;
    if (whole > 0) runs_[size_++] = {piece.data(), whole / width_};
    Join(piece.subspan(whole));
  }

  // All of them; the last may end with a short group.
  std::span<const simd::ValueRun> Finish() {
    if (joined_ > 0) EndJoint();
    return {runs_.data(), size_};
  }

  size_t count() const { return bytes_ / width_; }  // of values

 private:
  void Join(ByteSpan bytes) {
    if (bytes.empty()) return;
    std::memcpy(joints_[joint_].data() + joined_, bytes.data(), bytes.size());
    joined_ += bytes.size();
  }
  void EndJoint() {
    runs_[size_++] = {joints_[joint_++].data(), joined_ / width_};
    joined_ = 0;
  }

  static constexpr size_t kMaxGroupBytes = simd::kMaxGroup * 4;

  const size_t width_;
  const size_t group_bytes_;
  size_t bytes_ = 0;
  size_t size_ = 0;  // of runs_
  size_t joint_ = 0;
  size_t joined_ = 0;  // bytes of joints_[joint_]
  // A piece ends at most one joint, begins one, and has a run between them.
  std::array<simd::ValueRun, 2 * kMaxBlockPieces + 1> runs_;
  std::array<std::array<std::byte, kMaxGroupBytes>, kMaxBlockPieces + 1> joints_;
};

// docs/format.md, "intN": two streams, 16-bit scales and packed codes. The arithmetic is in simd/group_quant.h.
class IntGroup final : public TensorCodec {
 public:
  explicit IntGroup(const StageSpec& stage)
      : bits_(stage.codec->name.back() - '0'), group_(static_cast<size_t>(stage.Int("group"))) {}

  bool lossless() const override { return false; }
  bool is_fast() const override { return true; }
  bool tolerates_changing_values() const override { return true; }  // sizes do not depend on them
  float max_magnitude() const override { return simd::kMaxQuantizable; }
  size_t stream_count() const override { return 2; }

  void StreamBounds(const TensorDesc&, size_t count, std::span<size_t> bounds) const override {
    bounds[0] = 2 * simd::GroupCount(group_, count);
    bounds[1] = simd::PackedBytes(bits_, group_, count);
  }

  bool measures() const override { return true; }

  absl::Status Encode(const Block& block, std::span<StreamBuffer> streams, ErrorSums* sums) const override {
    const DType dtype = block.tensor.dtype;
    const size_t count = block.count;
    if (!simd::Quantize(Format(dtype), block.values.data(), count, streams[0].data, streams[1].data, sums)) {
      return absl::InvalidArgumentError("");
    }
    streams[0].size = 2 * simd::GroupCount(group_, count);
    streams[1].size = simd::PackedBytes(bits_, group_, count);
    return absl::OkStatus();
  }

  bool takes_pieces() const override { return true; }

  absl::Status EncodePieces(const Block& block, std::span<StreamBuffer> streams, ErrorSums* sums,
                            simd::TokenMeter* tokens) const override {
    const DType dtype = block.tensor.dtype;
    Runs runs(group_, DTypeSize(dtype));
    for (const ByteSpan piece : block.pieces) runs.Add(piece);
    const std::span<const simd::ValueRun> all = runs.Finish();
    if (!simd::QuantizeRuns(Format(dtype), all, streams[0].data, streams[1].data, sums, tokens)) {
      return absl::InvalidArgumentError("");
    }
    streams[0].size = 2 * simd::GroupCount(group_, runs.count());
    streams[1].size = simd::PackedBytes(bits_, group_, runs.count());
    return absl::OkStatus();
  }

  absl::Status Decode(const TensorDesc& tensor, std::span<const ByteSpan> streams,
                      MutableByteSpan values) const override {
    const size_t count = values.size() / DTypeSize(tensor.dtype);
    if (streams[0].size() != 2 * simd::GroupCount(group_, count) ||
        streams[1].size() != simd::PackedBytes(bits_, group_, count)) {
      return absl::DataLossError(absl::StrCat("int", bits_, ": stream has the wrong size"));
    }
    simd::Dequantize(Format(tensor.dtype), streams[0].data(), streams[1].data(), count, values.data());
    return absl::OkStatus();
  }

 private:
  simd::GroupQuantFormat Format(DType dtype) const { return {.dtype = dtype, .bits = bits_, .group = group_}; }

  int bits_;
  size_t group_;
};

constexpr Parameter kParameters[] = {Parameter::IntegerOf("group", 64, "32|64|128", "values that share a scale")};

constexpr CodecRow Row(std::string_view name, std::string_view summary, std::span<const std::string_view> examples) {
  return RowOf<IntGroup>(name, summary, examples, kParameters);
}

constexpr std::string_view kInt2Examples[] = {"int2(group=32)"};
constexpr std::string_view kInt3Examples[] = {"int3(group=64)"};
constexpr std::string_view kInt4Examples[] = {"int4(group=64)", "int4(group=32)", "int4(group=128)",
                                              "int4(group=64)|zstd(level=1)"};
constexpr std::string_view kInt5Examples[] = {"int5(group=64)"};
constexpr std::string_view kInt6Examples[] = {"int6(group=128)"};
constexpr std::string_view kInt8Examples[] = {"int8(group=64)"};

}  // namespace

extern constinit const CodecRow kInt2 = Row("int2", "2-bit integers, one 16-bit scale a group", kInt2Examples);
extern constinit const CodecRow kInt3 = Row("int3", "3-bit integers, one 16-bit scale a group", kInt3Examples);
extern constinit const CodecRow kInt4 = Row("int4", "4-bit integers, one 16-bit scale a group", kInt4Examples);
extern constinit const CodecRow kInt5 = Row("int5", "5-bit integers, one 16-bit scale a group", kInt5Examples);
extern constinit const CodecRow kInt6 = Row("int6", "6-bit integers, one 16-bit scale a group", kInt6Examples);
extern constinit const CodecRow kInt8 = Row("int8", "8-bit integers, one 16-bit scale a group", kInt8Examples);

}  // namespace kvcompress
