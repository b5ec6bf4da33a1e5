#include <zstd.h>

#include <memory>

#include "absl/strings/str_cat.h"
#include "core/codec/registry.h"

namespace kvcompress {
namespace {

struct FreeContext {
  void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
  void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};

// docs/format.md, "zstd": one Zstandard frame (RFC 8878) a stream.
class Zstd final : public ByteCodec {
 public:
  explicit Zstd(const StageSpec& stage) : level_(static_cast<int>(stage.Int("level"))) {}

  absl::StatusOr<size_t> Encode(ByteSpan raw, MutableByteSpan encoded) const override {
    // A context is megabytes at the higher levels, so each thread keeps one.
    thread_local const std::unique_ptr<ZSTD_CCtx, FreeContext> context(ZSTD_createCCtx());
    if (context == nullptr) return absl::ResourceExhaustedError("zstd: no memory for a context");
    const size_t size =
        ZSTD_compressCCtx(context.get(), encoded.data(), encoded.size(), raw.data(), raw.size(), level_);
    return ZSTD_isError(size) ? 0 : size;
  }

  absl::Status Decode(ByteSpan encoded, MutableByteSpan raw) const override {
    thread_local const std::unique_ptr<ZSTD_DCtx, FreeContext> context(ZSTD_createDCtx());
    if (context == nullptr) return absl::ResourceExhaustedError("zstd: no memory for a context");
    const size_t size = ZSTD_decompressDCtx(context.get(), raw.data(), raw.size(), encoded.data(), encoded.size());
    if (ZSTD_isError(size)) return absl::DataLossError(absl::StrCat("zstd: ", ZSTD_getErrorName(size)));
    if (size != raw.size()) return absl::DataLossError("zstd: stream decodes to the wrong size");
    if (ZSTD_findFrameCompressedSize(encoded.data(), encoded.size()) != encoded.size()) {
      return absl::DataLossError("zstd: stream is more than one frame");
    }
    return absl::OkStatus();
  }

 private:
  int level_;
};

constexpr std::string_view kExamples[] = {"raw|zstd(level=3)"};
constexpr Parameter kParameters[] = {Parameter::Integer("level", 3, -7, 19, "below 1 faster, higher smaller")};

}  // namespace

extern constinit const CodecRow kZstd = RowOf<Zstd>(
    "zstd", "Zstandard over each stream; slow, as its library is: it encodes at 0.2 to 2 GB/s and decodes at 1 to 3.5",
    kExamples, kParameters);

}  // namespace kvcompress
