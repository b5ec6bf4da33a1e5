#include "core/base/status_macros.h"
#include "core/codec/registry.h"

namespace kvcompress {
namespace {

// docs/format.md, "stored": makes no stream smaller, so that each is left as it is.
class Stored final : public ByteCodec {
 public:
  std::string spec() const override { return "stored"; }
  absl::StatusOr<size_t> Encode(ByteSpan /*raw*/, MutableByteSpan /*encoded*/) const override { return size_t{0}; }
  absl::Status Decode(ByteSpan /*encoded*/, MutableByteSpan /*raw*/) const override {
    return absl::DataLossError("stored: no stream becomes smaller");
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<ByteCodec>> MakeStored(const StageSpec& stage) {
  StageArgs args(stage);
  KVC_RETURN_IF_ERROR(args.Finish());
  return std::make_unique<Stored>();
}

}  // namespace kvcompress
