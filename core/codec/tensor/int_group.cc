#include "absl/strings/str_cat.h"
#include "core/codec/registry.h"
#include "core/codec/tensor/value_runs.h"
#include "core/simd/group_quant.h"

namespace kvcompress {
namespace {

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

  Pieces takes_pieces() const override { return Pieces::kMany; }

  absl::Status EncodePieces(const Block& block, std::span<StreamBuffer> streams, ErrorSums* sums,
                            simd::TokenMeter* tokens) const override {
    const DType dtype = block.tensor.dtype;
    const ValueRuns runs(group_, DTypeSize(dtype), block.pieces);
    if (!simd::QuantizeRuns(Format(dtype), runs.runs(), streams[0].data, streams[1].data, sums, tokens)) {
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
