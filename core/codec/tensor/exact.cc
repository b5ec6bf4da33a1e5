#include <algorithm>
#include <array>
#include <cstring>

#include "core/base/status_macros.h"
#include "core/codec/registry.h"

namespace kvcompress {
namespace {

const ChainSpec& Stages() {
  static const ChainSpec spec = *ChainSpec::ParseStages("planes(split=lz)|smallest");
  return spec;
}

constexpr size_t kMaxPlanes = 4;
constexpr size_t kModeBytes = 6;      // of planes: split, delta, distance
constexpr size_t kDistanceBytes = 4;  // there with a delta only

struct Scratch {
  std::array<Buffer, 1 + kMaxPlanes> streams;  // of planes: the mode, and the planes
};

Scratch& ThreadScratch() {
  thread_local Scratch scratch;
  return scratch;
}

// docs/format.md, "exact": what planes and smallest make of a block, in one stream.
class Exact final : public TensorCodec {
 public:
  Exact(std::unique_ptr<TensorCodec> planes, std::unique_ptr<ByteCodec> coder)
      : planes_(std::move(planes)), coder_(std::move(coder)) {}

  bool lossless() const override { return true; }
  size_t stream_count() const override { return 1; }

  void StreamBounds(const TensorDesc& tensor, size_t count, std::span<size_t> bounds) const override {
    const Layout layout(*planes_, tensor, count);
    bounds[0] = 1 + kDistanceBytes + 4 * (layout.planes - 1) + layout.planes * layout.size;
  }

  absl::Status Encode(const Block& block, std::span<StreamBuffer> streams, ErrorSums*) const override {
    const Layout layout(*planes_, block.tensor, block.count);
    Scratch& scratch = ThreadScratch();
    std::array<StreamBuffer, 1 + kMaxPlanes> planes;
    for (size_t i = 0; i < planes.size(); ++i) {
      scratch.streams[i].Resize(i == 0 ? kModeBytes : i <= layout.planes ? layout.size : 0);
      planes[i] = {scratch.streams[i].data(), 0};
    }
    KVC_RETURN_IF_ERROR(planes_->Encode(block, planes, nullptr));

    StreamBuffer& out = streams[0];
    const std::byte delta = planes[0].data[1];
    out.data[0] = planes[0].data[0] | delta << 1;
    std::byte* sizes = out.data + 1;
    if (delta != std::byte{0}) {
      std::memcpy(sizes, planes[0].data + 2, kDistanceBytes);
      sizes += kDistanceBytes;
    }
    std::byte* at = sizes + 4 * (layout.planes - 1);
    for (size_t p = 0; p < layout.planes; ++p) {
      const ByteSpan plane{planes[1 + p].data, layout.size};
      KVC_ASSIGN_OR_RETURN(size_t size, coder_->Encode(plane, {at, plane.size()}));
      if (size == 0 || size >= plane.size()) {
        size = plane.size();
        std::ranges::copy(plane, at);
      }
      if (p + 1 < layout.planes) StoreLE(static_cast<uint32_t>(size), sizes + 4 * p);
      at += size;
    }
    out.size = static_cast<size_t>(at - out.data);
    return absl::OkStatus();
  }

  absl::Status Decode(const TensorDesc& tensor, std::span<const ByteSpan> streams,
                      MutableByteSpan values) const override {
    const Layout layout(*planes_, tensor, values.size() / DTypeSize(tensor.dtype));
    Scratch& scratch = ThreadScratch();
    std::array<std::byte, kModeBytes> mode = {};
    ByteReader reader(streams[0]);
    uint8_t split_and_delta = 0;
    if (!reader.Read(split_and_delta)) return absl::DataLossError("exact: stream is empty");
    mode[0] = static_cast<std::byte>(split_and_delta & 1);
    mode[1] = static_cast<std::byte>(split_and_delta >> 1);
    uint32_t distance = 0;
    if (mode[1] != std::byte{0} && !reader.Read(distance)) return absl::DataLossError("exact: stream ends early");
    StoreLE(distance, mode.data() + 2);

    std::array<ByteSpan, 1 + kMaxPlanes> planes = {mode};
    std::array<uint32_t, kMaxPlanes> sizes = {};
    for (size_t p = 0; p + 1 < layout.planes; ++p) {
      if (!reader.Read(sizes[p])) return absl::DataLossError("exact: stream ends early");
    }
    for (size_t p = 0; p < layout.planes; ++p) {
      const size_t size = p + 1 < layout.planes ? sizes[p] : reader.remaining();
      ByteSpan& plane = planes[1 + p];
      if (size > layout.size || !reader.ReadBytes(size, plane)) {
        return absl::DataLossError("exact: plane has the wrong size");
      }
      if (size == layout.size) continue;
      Buffer& decoded = scratch.streams[1 + p];
      decoded.Resize(layout.size);
      KVC_RETURN_IF_ERROR(coder_->Decode(plane, decoded.span()));
      plane = decoded.span();
    }
    return planes_->Decode(tensor, planes, values);
  }

 private:
  // How many planes there are, and the bytes of each.
  struct Layout {
    Layout(const TensorCodec& codec, const TensorDesc& tensor, size_t count) {
      std::array<size_t, 1 + kMaxPlanes> bounds;
      codec.StreamBounds(tensor, 1, bounds);
      planes = static_cast<size_t>(std::count_if(bounds.begin() + 1, bounds.end(), [](size_t n) { return n > 0; }));
      size = count * bounds[1];
    }
    size_t planes;
    size_t size;
  };

  const std::unique_ptr<TensorCodec> planes_;
  const std::unique_ptr<ByteCodec> coder_;
};

constexpr std::string_view kExamples[] = {"exact"};

MadeCodec<TensorCodec> Make(const CodecArgs& args) {
  const StageSpec& planes = Stages().stages()[0];
  const StageSpec& coder = Stages().stages()[1];
  KVC_ASSIGN_OR_RETURN(auto tensor_codec, planes.codec->make_tensor_codec({planes, args.environment, args.tensor}));
  if (tensor_codec->stream_count() != 1 + kMaxPlanes) return absl::InternalError("exact: planes has other streams");
  KVC_ASSIGN_OR_RETURN(auto byte_codec, coder.codec->make_byte_codec({coder, args.environment, args.tensor}));
  return std::make_unique<Exact>(std::move(tensor_codec), std::move(byte_codec));
}

}  // namespace

extern constinit const CodecRow kExact = {
    .name = "exact",
    .summary = "every bit kept, in the fewest bytes at GB/s: planes, entropy coding, and matches where runs repeat",
    .examples = kExamples,
    .make_tensor_codec = Make};

}  // namespace kvcompress
