#include "absl/strings/str_cat.h"
#include "kvcompress/base/status_macros.h"
#include "kvcompress/codec/registry.h"
#include "kvcompress/simd/group_quant.h"

namespace kvcompress {
namespace {

// docs/format.md, "intN": two streams, FP16 scales and packed codes. The arithmetic is in simd/group_quant.h.
class IntGroup final : public TensorCodec {
 public:
  IntGroup(int bits, size_t group) : bits_(bits), group_(group) {}

  std::string spec() const override { return absl::StrCat("int", bits_, "(group=", group_, ")"); }
  bool lossless() const override { return false; }
  bool is_fast() const override { return true; }
  bool tolerates_changing_values() const override { return true; }  // sizes do not depend on them
  float max_magnitude() const override { return simd::MaxQuantizable(bits_); }
  size_t stream_count() const override { return 2; }

  void StreamBounds(DType, size_t count, std::span<size_t> bounds) const override {
    bounds[0] = 2 * simd::GroupCount(group_, count);
    bounds[1] = simd::PackedBytes(bits_, group_, count);
  }

  bool measures() const override { return true; }

  absl::Status Encode(DType dtype, ByteSpan values, std::span<StreamBuffer> streams, ErrorSums* sums) const override {
    const size_t count = values.size() / DTypeSize(dtype);
    if (!simd::Quantize(Format(dtype), values.data(), count, streams[0].data, streams[1].data, sums)) {
      return absl::InvalidArgumentError("");
    }
    streams[0].size = 2 * simd::GroupCount(group_, count);
    streams[1].size = simd::PackedBytes(bits_, group_, count);
    return absl::OkStatus();
  }

  absl::Status Decode(DType dtype, std::span<const ByteSpan> streams, MutableByteSpan values) const override {
    const size_t count = values.size() / DTypeSize(dtype);
    if (streams[0].size() != 2 * simd::GroupCount(group_, count) ||
        streams[1].size() != simd::PackedBytes(bits_, group_, count)) {
      return absl::DataLossError(absl::StrCat("int", bits_, ": stream has the wrong size"));
    }
    simd::Dequantize(Format(dtype), streams[0].data(), streams[1].data(), count, values.data());
    return absl::OkStatus();
  }

 private:
  simd::GroupQuantFormat Format(DType dtype) const { return {.dtype = dtype, .bits = bits_, .group = group_}; }

  int bits_;
  size_t group_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TensorCodec>> MakeIntGroup(const StageSpec& stage) {
  const int bits = stage.name.back() - '0';
  StageArgs args(stage);
  KVC_ASSIGN_OR_RETURN(const int64_t group, args.IntOneOf("group", 64, {32, 64, 128}));
  KVC_RETURN_IF_ERROR(args.Finish());
  return std::make_unique<IntGroup>(bits, static_cast<size_t>(group));
}

}  // namespace kvcompress
