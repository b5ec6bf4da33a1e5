#include "core/codec/registry.h"

namespace kvcompress {
namespace {

// docs/format.md, "stored": makes no stream smaller, so that each is left as it is.
class Stored final : public ByteCodec {
 public:
  absl::StatusOr<size_t> Encode(ByteSpan /*raw*/, MutableByteSpan /*encoded*/) const override { return size_t{0}; }
  absl::Status Decode(ByteSpan /*encoded*/, MutableByteSpan /*raw*/) const override {
    return absl::DataLossError("stored: no stream becomes smaller");
  }
};

constexpr std::string_view kExamples[] = {"raw|stored"};

}  // namespace

extern constinit const CodecRow kStored = RowOf<Stored>("stored", "leaves each stream as it is", kExamples);

}  // namespace kvcompress
