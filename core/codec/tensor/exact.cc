#include <algorithm>
#include <array>
#include <bit>
#include <vector>

#include "core/base/status_macros.h"
#include "core/codec/histogram.h"
#include "core/codec/matches.h"
#include "core/codec/registry.h"
#include "core/codec/repetitions.h"
#include "core/codec/smallest_stream.h"

namespace kvcompress {
namespace {

// Whose planes a block has: of least cost without matches, and those that have the most matches.
constexpr std::string_view kPlanes = "planes(split=coded,delta=auto)";
constexpr std::string_view kPlainPlanes = "planes(split=bytes,delta=none)";

constexpr size_t kMaxPlanes = 4;
constexpr size_t kModeBytes = 6;  // of planes: split, delta, distance
// The first byte has the split, the delta, and which planes are stored as they are.
constexpr int kDeltaBit = 1;
constexpr int kStoredBit = 3;
constexpr size_t kDistanceBytes = 4;  // there with a delta only
constexpr size_t kSizeBytes = 4;      // of each plane that is coded, but the last

// Of blocks of more values, half of them show whether matches pay.
constexpr size_t kSampledValues = size_t{1} << 14;

// The streams of `planes`: the mode, and the planes.
class PlanesOfBlock {
 public:
  absl::Status Split(const TensorCodec& codec, const Block& block) {
    std::array<size_t, 1 + kMaxPlanes> bounds;
    codec.StreamBounds(block.tensor, block.count, bounds);
    std::array<StreamBuffer, 1 + kMaxPlanes> streams;
    for (size_t i = 0; i < streams.size(); ++i) {
      buffers_[i].Resize(bounds[i]);
      streams[i] = {buffers_[i].data(), 0};
    }
    KVC_RETURN_IF_ERROR(codec.Encode(block, streams, nullptr));
    for (size_t i = 0; i < streams.size(); ++i) spans_[i] = {streams[i].data, streams[i].size};
    return absl::OkStatus();
  }

  ByteSpan mode() const { return spans_[0]; }
  ByteSpan plane(size_t p) const { return spans_[1 + p]; }
  bool is_plain() const { return mode()[0] == std::byte{0} && mode()[1] == std::byte{0}; }

  // The bits that a sample of `width` planes takes, about: without matches, and with matches in the highest.
  struct Cost {
    uint64_t unmatched;
    uint64_t matched;
  };
  Cost SampledCost(size_t width) const {
    const std::vector<std::byte>& highest = Sample(0);
    const Histogram counts = CountBytesSoon(highest);
    Cost cost = {.unmatched = EntropyBits(counts), .matched = 0};
    thread_local std::vector<Match> found;
    FindMatches(highest, MatchLengthFor(highest.size(), cost.unmatched), found);
    cost.matched = EntropyBits(CountLiteralBytes(highest, counts, found));
    for (size_t k = 0; k < kMatchColumns; ++k) cost.matched += ColumnBits(found, k);
    for (size_t p = 1; p < width; ++p) {
      const uint64_t lower = EntropyBits(CountBytesSoon(Sample(p)));
      cost.unmatched += lower;
      cost.matched += lower;
    }
    return cost;
  }

 private:
  // The first and the third quarter: the halves of a block may be different heads.
  const std::vector<std::byte>& Sample(size_t p) const {
    thread_local std::vector<std::byte> sample;
    const ByteSpan bytes = plane(p);
    const size_t part = bytes.size() <= kSampledValues ? bytes.size() : bytes.size() / 4;
    const ByteSpan first = bytes.first(part);
    const ByteSpan third = part < bytes.size() ? bytes.subspan(2 * part, part) : ByteSpan();
    sample.assign(first.begin(), first.end());
    sample.insert(sample.end(), third.begin(), third.end());
    return sample;
  }

  std::array<Buffer, 1 + kMaxPlanes> buffers_;
  std::array<ByteSpan, 1 + kMaxPlanes> spans_;
};

struct Scratch {
  PlanesOfBlock cheapest;
  PlanesOfBlock plain;
  std::array<Buffer, kMaxPlanes> decoded;
};

Scratch& ThreadScratch() {
  thread_local Scratch scratch;
  return scratch;
}

// The least length of a match that is worth it in `plane`, as a sample of it shows.
size_t MatchLengthIn(ByteSpan plane) {
  constexpr size_t kRun = 32;
  constexpr size_t kRuns = 64;
  const size_t every = std::max(kRun, plane.size() / kRuns);
  Histogram counts = {};
  size_t sampled = 0;
  for (size_t at = 0; at + kRun <= plane.size(); at += every, sampled += kRun) {
    for (const std::byte byte : plane.subspan(at, kRun)) ++counts[std::to_integer<size_t>(byte)];
  }
  return MatchLengthFor(sampled, EntropyBits(counts));
}

// docs/format.md, "exact": what planes and smallest make of a block, in one stream.
class Exact final : public TensorCodec {
 public:
  Exact(std::unique_ptr<TensorCodec> planes, std::unique_ptr<TensorCodec> plain)
      : planes_(std::move(planes)), plain_(std::move(plain)) {}

  bool lossless() const override { return true; }
  size_t stream_count() const override { return 1; }

  void StreamBounds(const TensorDesc& tensor, size_t count, std::span<size_t> bounds) const override {
    const Layout layout(*planes_, tensor, count);
    bounds[0] = 1 + kDistanceBytes + kSizeBytes * (layout.planes - 1) + layout.planes * layout.size;
  }

  absl::Status Encode(const Block& block, std::span<StreamBuffer> streams, ErrorSums*) const override {
    const Layout layout(*planes_, block.tensor, block.count);
    bool may_match = false;
    KVC_ASSIGN_OR_RETURN(const PlanesOfBlock* planes, PlanesFor(block, layout.planes, may_match));

    StreamBuffer& out = streams[0];
    const ByteSpan mode = planes->mode();
    std::byte* at = out.data + 1;
    if (mode[1] != std::byte{0}) at = std::ranges::copy(mode.last(kDistanceBytes), at).out;
    unsigned stored = 0;
    std::array<uint32_t, kMaxPlanes> sizes;
    size_t coded = 0;
    for (size_t p = 0; p < layout.planes; ++p) {
      const ByteSpan plane = planes->plane(p);
      const size_t size = EncodeSmallest(plane, may_match, {at, plane.size()});
      if (size == 0) {
        stored |= 1u << p;
        at = std::ranges::copy(plane, at).out;
      } else {
        sizes[coded++] = static_cast<uint32_t>(size);
        at += size;
      }
    }
    for (size_t i = 0; i + 1 < coded; ++i, at += kSizeBytes) StoreLE(sizes[i], at);
    out.data[0] = mode[0] | mode[1] << kDeltaBit | static_cast<std::byte>(stored << kStoredBit);
    out.size = static_cast<size_t>(at - out.data);
    return absl::OkStatus();
  }

  absl::Status Decode(const TensorDesc& tensor, std::span<const ByteSpan> streams,
                      MutableByteSpan values) const override {
    const Layout layout(*planes_, tensor, values.size() / DTypeSize(tensor.dtype));
    ByteReader reader(streams[0]);
    uint8_t head = 0;
    uint32_t distance = 0;
    if (!reader.Read(head)) return absl::DataLossError("exact: stream is empty");
    const unsigned delta = head >> kDeltaBit & 3;
    const unsigned stored = head >> kStoredBit;
    if (stored >> layout.planes != 0) return absl::DataLossError("exact: more planes than a value has bytes");
    const size_t coded = layout.planes - static_cast<size_t>(std::popcount(stored));
    const size_t size_bytes = coded > 1 ? kSizeBytes * (coded - 1) : 0;
    if ((delta != 0 && !reader.Read(distance)) || reader.remaining() < size_bytes) {
      return absl::DataLossError("exact: stream ends early");
    }
    std::array<std::byte, kModeBytes> mode = {static_cast<std::byte>(head & 1), static_cast<std::byte>(delta)};
    StoreLE(distance, mode.data() + 2);

    ByteReader sizes(streams[0].last(size_bytes));
    size_t left = reader.remaining() - size_bytes;
    std::array<ByteSpan, 1 + kMaxPlanes> planes = {mode};
    for (size_t p = 0; p < layout.planes; ++p) {
      const bool is_stored = (stored >> p & 1) != 0;
      const size_t stored_from_here = layout.size * static_cast<size_t>(std::popcount(stored >> p));
      uint32_t size = 0;
      if (is_stored) {
        size = static_cast<uint32_t>(layout.size);
      } else if (!sizes.Read(size)) {
        size = static_cast<uint32_t>(left - std::min(left, stored_from_here));
      }
      if (size > left || is_stored != (size == layout.size) || size > layout.size ||
          !reader.ReadBytes(size, planes[1 + p])) {
        return absl::DataLossError("exact: plane has the wrong size");
      }
      left -= size;
      if (!is_stored) KVC_RETURN_IF_ERROR(DecodePlane(layout.size, p, planes[1 + p]));
    }
    if (left > 0) return absl::DataLossError("exact: bytes are left");
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

  // The planes to code, and whether matches may be in them. Where runs repeat, they may be longer in plain bytes.
  absl::StatusOr<const PlanesOfBlock*> PlanesFor(const Block& block, size_t width, bool& may_match) const {
    constexpr uint64_t kLeastGain = 333;  // matches save at least one part in so many
    constexpr size_t kMany = 8;           // of 256 runs: they save more than that for sure
    Scratch& scratch = ThreadScratch();
    PlanesOfBlock& cheapest = scratch.cheapest;
    KVC_RETURN_IF_ERROR(cheapest.Split(*planes_, block));
    const size_t repeating = LongRunsThatRepeat(cheapest.plane(0));
    may_match = cheapest.is_plain() && repeating >= kMany;
    if (may_match || repeating == 0) return &cheapest;

    const PlanesOfBlock* best = &cheapest;
    const PlanesOfBlock::Cost cost = cheapest.SampledCost(width);
    uint64_t matched = cost.matched;
    if (!cheapest.is_plain()) {
      KVC_RETURN_IF_ERROR(scratch.plain.Split(*plain_, block));
      const uint64_t plain = scratch.plain.SampledCost(width).matched;
      if (plain < matched) best = &scratch.plain;
      matched = std::min(matched, plain);
    }
    may_match = matched + cost.unmatched / kLeastGain <= cost.unmatched;
    return may_match ? best : &cheapest;
  }

  // Of 256 runs of `highest`, how many repeat and are longer than matches have to be: there are always some that just
  // are, and matches gain next to nothing by these.
  static size_t LongRunsThatRepeat(ByteSpan highest) { return RepeatingRuns(highest, MatchLengthIn(highest) + 2); }

  // `plane`: first as it is coded, then its `size` bytes.
  static absl::Status DecodePlane(size_t size, size_t p, ByteSpan& plane) {
    Buffer& decoded = ThreadScratch().decoded[p];
    decoded.Resize(size);
    KVC_RETURN_IF_ERROR(DecodeSmallest(plane, decoded.span()));
    plane = decoded.span();
    return absl::OkStatus();
  }

  const std::unique_ptr<TensorCodec> planes_;
  const std::unique_ptr<TensorCodec> plain_;
};

constexpr std::string_view kExamples[] = {"exact"};

MadeCodec<TensorCodec> MakePlanes(std::string_view spec, const CodecArgs& args) {
  KVC_ASSIGN_OR_RETURN(const ChainSpec chain, ChainSpec::ParseStages(spec));
  const StageSpec& stage = chain.stages()[0];
  KVC_ASSIGN_OR_RETURN(auto planes, stage.codec->make_tensor_codec({stage, args.environment, args.tensor}));
  if (planes->stream_count() != 1 + kMaxPlanes) return absl::InternalError("exact: planes has other streams");
  return planes;
}

MadeCodec<TensorCodec> Make(const CodecArgs& args) {
  KVC_ASSIGN_OR_RETURN(auto planes, MakePlanes(kPlanes, args));
  KVC_ASSIGN_OR_RETURN(auto plain, MakePlanes(kPlainPlanes, args));
  return std::make_unique<Exact>(std::move(planes), std::move(plain));
}

}  // namespace

extern constinit const CodecRow kExact = {.name = "exact",
                                          .summary =
                                              "every bit kept, in few bytes: planes, entropy coding, and matches where "
                                              "runs repeat; slow: it encodes at 1 to 2 GB/s, at less where runs repeat",
                                          .examples = kExamples,
                                          .make_tensor_codec = Make};

}  // namespace kvcompress
