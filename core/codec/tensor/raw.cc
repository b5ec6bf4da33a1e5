#include <cstring>

#include "core/codec/registry.h"

namespace kvcompress {
namespace {

// docs/format.md, "raw": one stream, the values' bytes.
class Raw final : public TensorCodec {
 public:
  bool lossless() const override { return true; }
  bool is_fast() const override { return true; }
  bool tolerates_changing_values() const override { return true; }  // sizes do not depend on them
  size_t stream_count() const override { return 1; }

  void StreamBounds(const TensorDesc& tensor, size_t count, std::span<size_t> bounds) const override {
    bounds[0] = count * DTypeSize(tensor.dtype);
  }

  absl::Status Encode(const Block& block, std::span<StreamBuffer> streams, ErrorSums*) const override {
    const ByteSpan values = block.values;
    if (!values.empty()) std::memcpy(streams[0].data, values.data(), values.size());
    streams[0].size = values.size();
    return absl::OkStatus();
  }

  absl::Status Decode(const TensorDesc&, std::span<const ByteSpan> streams, MutableByteSpan values) const override {
    if (streams[0].size() != values.size()) return absl::DataLossError("raw: stream has the wrong size");
    if (!values.empty()) std::memcpy(values.data(), streams[0].data(), values.size());
    return absl::OkStatus();
  }
};

constexpr std::string_view kExamples[] = {"raw"};

}  // namespace

extern constinit const CodecRow kRaw = RowOf<Raw>("raw", "the values as they are, lossless", kExamples);

}  // namespace kvcompress
