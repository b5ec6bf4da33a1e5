#include "core/codec/registry.h"
#include "core/codec/smallest_stream.h"

namespace kvcompress {
namespace {

// docs/format.md, "smallest".
class Smallest final : public ByteCodec {
 public:
  absl::StatusOr<size_t> Encode(ByteSpan raw, MutableByteSpan encoded) const override {
    return EncodeSmallest(raw, true, encoded);
  }
  absl::Status Decode(ByteSpan encoded, MutableByteSpan raw) const override { return DecodeSmallest(encoded, raw); }
};

constexpr std::string_view kExamples[] = {"planes(split=coded,delta=auto)|smallest", "int4(group=64)|smallest"};

}  // namespace

extern constinit const CodecRow kSmallest = RowOf<Smallest>(
    "smallest", "entropy coding of each stream, as rans, and of runs that repeat only where they do, which is slow",
    kExamples);

}  // namespace kvcompress
