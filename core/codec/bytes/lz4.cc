#include <lz4.h>
#include <lz4hc.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "core/codec/registry.h"

namespace kvcompress {
namespace {

constexpr size_t kMaxInt = std::numeric_limits<int>::max();
constexpr int kFirstHighLevel = 3;  // of LZ4's own command line: below, the fast match finder

// docs/format.md, "lz4": one LZ4 block a stream.
class Lz4 final : public ByteCodec {
 public:
  explicit Lz4(const StageSpec& stage) : level_(static_cast<int>(stage.Int("level"))) {}

  absl::StatusOr<size_t> Encode(ByteSpan raw, MutableByteSpan encoded) const override {
    if (raw.size() > LZ4_MAX_INPUT_SIZE) return size_t{0};
    const auto* in = reinterpret_cast<const char*>(raw.data());
    auto* out = reinterpret_cast<char*>(encoded.data());
    const int in_size = static_cast<int>(raw.size());
    const int room = static_cast<int>(std::min(encoded.size(), kMaxInt));
    const int size = level_ >= kFirstHighLevel
                         ? LZ4_compress_HC_extStateHC(ThreadState(), in, out, in_size, room, level_)
                         : LZ4_compress_fast_extState(ThreadState(), in, out, in_size, room, level_ < 0 ? -level_ : 1);
    return static_cast<size_t>(std::max(size, 0));
  }

  absl::Status Decode(ByteSpan encoded, MutableByteSpan raw) const override {
    if (encoded.size() > kMaxInt || raw.size() > kMaxInt) return absl::DataLossError("lz4: stream is too long");
    const int size =
        LZ4_decompress_safe(reinterpret_cast<const char*>(encoded.data()), reinterpret_cast<char*>(raw.data()),
                            static_cast<int>(encoded.size()), static_cast<int>(raw.size()));
    if (size < 0) return absl::DataLossError("lz4: stream is damaged");
    if (static_cast<size_t>(size) != raw.size()) return absl::DataLossError("lz4: stream decodes to the wrong size");
    return absl::OkStatus();
  }

 private:
  // 16 KiB, or 256 KiB for the high levels: each thread keeps its own.
  void* ThreadState() const {
    thread_local std::vector<std::byte> state;
    const auto size = static_cast<size_t>(level_ >= kFirstHighLevel ? LZ4_sizeofStateHC() : LZ4_sizeofState());
    if (state.size() < size) state.resize(size);
    return state.data();
  }

  int level_;
};

constexpr std::string_view kExamples[] = {"raw|lz4(level=1)", "raw|lz4(level=-8)", "int8(group=64)|lz4(level=9)"};
constexpr Parameter kParameters[] = {
    Parameter::Integer("level", 1, -64, LZ4HC_CLEVEL_MAX, "below 0 faster, from 3 on smaller and slow to encode")};

}  // namespace

extern constinit const CodecRow kLz4 = RowOf<Lz4>(
    "lz4",
    "LZ4 over each stream; slow where it finds something, as its library is: it encodes at 0.4 GB/s and decodes at 2.7",
    kExamples, kParameters);

}  // namespace kvcompress
