#include <algorithm>
#include <array>
#include <cstring>

#include "absl/status/status.h"
#include "core/base/status_macros.h"
#include "core/codec/chain.h"
#include "core/codec/registry.h"

namespace kvcompress {
namespace {

constexpr uint64_t kNoEnd = uint64_t{1} << 48;  // no tensor has as many heads
constexpr size_t kLayoutBytes = 24;

// Heads from `first` on, up to the next part's.
struct Part {
  uint64_t first;
  CodecChain chain;
};

// Where in a block which head stands: heads change every `stride` values, and begin again after the last.
struct Layout {
  uint64_t stride;
  uint64_t heads;
  uint64_t phase;  // of the block's first value among the stride * heads

  // Within what a tensor can be; then nothing below overflows.
  bool is_valid() const {
    return stride >= 1 && heads >= 1 && stride <= kMaxTensorElements && heads <= kMaxTensorElements / stride &&
           phase < stride * heads;
  }
};

// The values of a part in a block.
struct Share {
  size_t count = 0;
  size_t runs = 0;
  size_t place = 0;  // of the first, in the block or among the gathered values
};
using Shares = std::array<Share, StageSpec::kMaxParts>;

struct Scratch {
  Buffer gathered;  // values of a block, those of each part together
  Buffer payload;
};

Scratch& ThreadScratch() {
  thread_local Scratch scratch;
  return scratch;
}

absl::StatusOr<Layout> LayoutOf(const TensorDesc& tensor, uint64_t first) {
  if (std::ranges::count(tensor.axes, AxisRole::kHeads) != 1) {
    return absl::InvalidArgumentError("heads takes tensors with one heads axis only (the axis roles tell which it is)");
  }
  Layout layout{1, 1, 0};
  for (size_t i = tensor.axes.size(); i-- > 0;) {
    if (tensor.axes[i] == AxisRole::kHeads) {
      layout.heads = tensor.shape[i];
      break;
    }
    layout.stride *= tensor.shape[i];
  }
  const uint64_t period = layout.stride * layout.heads;
  layout.phase = period > 0 ? first % period : 0;
  return layout;
}

// How the values of a part, which has the heads from `first` up to `end`, lie among tokens: as those of a tensor that
// has only these heads.
TokenRun TokensOf(const Layout& layout, uint64_t first, uint64_t end, const Block& block) {
  TokenRun run{TokenLayoutOf(block.tensor)};
  const uint64_t period = layout.stride * layout.heads;
  const uint64_t own = (std::min(end, layout.heads) - first) * layout.stride;
  if (period <= run.layout.channels) run.layout.channels = run.layout.channels / period * own;
  const uint64_t begin = std::max(layout.phase, first * layout.stride) - first * layout.stride;
  run.first = block.first / period * own + std::min(begin, own);
  return run;
}

// docs/format.md, "heads": one stream with the layout, the size of each part's payload, and the payloads.
class Heads final : public TensorCodec {
 public:
  explicit Heads(std::vector<Part> parts) : parts_(std::move(parts)) {}

  bool lossless() const override {
    return std::ranges::all_of(parts_, [](const Part& part) { return part.chain.lossless(); });
  }
  size_t stream_count() const override { return 1; }

  // No part takes more than its values.
  void StreamBounds(const TensorDesc& tensor, size_t count, std::span<size_t> bounds) const override {
    bounds[0] = TableBytes() + count * DTypeSize(tensor.dtype);
  }

  absl::Status Encode(const Block& block, std::span<StreamBuffer> streams, ErrorSums*) const override {
    KVC_ASSIGN_OR_RETURN(const Layout layout, LayoutOf(block.tensor, block.first));
    const size_t width = DTypeSize(block.tensor.dtype);
    Shares shares;
    ByteSpan values = block.values;
    if (!Divide(layout, block.count, shares)) {
      Buffer& gathered = ThreadScratch().gathered;
      gathered.Resize(values.size());
      ForEachMove(layout, block.count, shares, [&](size_t in_block, size_t in_gathered, size_t count) {
        std::memcpy(gathered.data() + in_gathered * width, values.data() + in_block * width, count * width);
      });
      values = gathered.span();
    }
    std::byte* entry = streams[0].data;
    for (const uint64_t number : {layout.stride, layout.heads, layout.phase}) {
      StoreLE(number, entry);
      entry += 8;
    }
    std::byte* at = streams[0].data + TableBytes();
    for (size_t p = 0; p < parts_.size(); ++p) {
      const ByteSpan own = values.subspan(shares[p].place * width, shares[p].count * width);
      const Block part{block.tensor, block.first, shares[p].count, own, {}, PartTokens(p, layout, block),
                       nullptr,      block.rotary};
      const absl::StatusOr<size_t> size = EncodePart(parts_[p].chain, part, at);
      if (absl::IsInvalidArgument(size.status())) return FaultOf(p, layout, block);
      KVC_RETURN_IF_ERROR(size.status());
      StoreLE(static_cast<uint32_t>(*size), entry);
      entry += 4;
      at += *size;
    }
    streams[0].size = static_cast<size_t>(at - streams[0].data);
    return absl::OkStatus();
  }

  absl::Status Decode(const TensorDesc& tensor, std::span<const ByteSpan> streams,
                      MutableByteSpan values) const override {
    ByteSpan rest = streams[0];
    if (rest.size() < TableBytes()) return absl::DataLossError("heads: stream ends in its table");
    const std::byte* entry = rest.data();
    const Layout layout{LoadLE<uint64_t>(entry), LoadLE<uint64_t>(entry + 8), LoadLE<uint64_t>(entry + 16)};
    if (!layout.is_valid()) return absl::DataLossError("heads: no tensor has such heads");
    entry += kLayoutBytes;
    rest = rest.subspan(TableBytes());

    const size_t width = DTypeSize(tensor.dtype);
    const size_t count = values.size() / width;
    Shares shares;
    MutableByteSpan target = values;
    const bool in_place = Divide(layout, count, shares);
    if (!in_place) {
      ThreadScratch().gathered.Resize(values.size());
      target = ThreadScratch().gathered.span();
    }
    for (size_t p = 0; p < parts_.size(); ++p, entry += 4) {
      const size_t size = LoadLE<uint32_t>(entry);
      const MutableByteSpan own = target.subspan(shares[p].place * width, shares[p].count * width);
      if (size > rest.size() || size > own.size()) return absl::DataLossError("heads: payload has the wrong size");
      KVC_RETURN_IF_ERROR(DecodePart(parts_[p].chain, tensor, rest.first(size), own));
      rest = rest.subspan(size);
    }
    if (!rest.empty()) return absl::DataLossError("heads: bytes behind the last payload");
    if (!in_place) {
      ForEachMove(layout, count, shares, [&](size_t in_block, size_t in_gathered, size_t moved) {
        std::memcpy(values.data() + in_block * width, target.data() + in_gathered * width, moved * width);
      });
    }
    return absl::OkStatus();
  }

 private:
  size_t TableBytes() const { return kLayoutBytes + 4 * parts_.size(); }

  // Calls `take(part, begin, count)` for each run of values that one part has, in the order of the block.
  template <typename Take>
  void ForEachRun(const Layout& layout, size_t count, Take take) const {
    uint64_t position = layout.phase;
    for (size_t at = 0; at < count;) {
      const auto next = std::ranges::upper_bound(parts_, position / layout.stride, {}, &Part::first);
      const uint64_t end = std::min(next == parts_.end() ? kNoEnd : next->first, layout.heads) * layout.stride;
      const size_t run = static_cast<size_t>(std::min<uint64_t>(end - position, count - at));
      take(static_cast<size_t>(next - parts_.begin()) - 1, at, run);
      at += run;
      position = end == layout.heads * layout.stride ? 0 : end;
    }
  }

  // What each part has of a block. True when that is one run of each: then it is taken from where it is; otherwise
  // the parts' values are gathered, one part's after the other's.
  bool Divide(const Layout& layout, size_t count, Shares& shares) const {
    ForEachRun(layout, count, [&](size_t part, size_t begin, size_t run) {
      Share& share = shares[part];
      if (share.runs++ == 0) share.place = begin;
      share.count += run;
    });
    if (std::ranges::all_of(shares, [](const Share& share) { return share.runs <= 1; })) return true;
    size_t place = 0;
    for (Share& share : shares) {
      share.place = place;
      place += share.count;
    }
    return false;
  }

  template <typename Move>
  void ForEachMove(const Layout& layout, size_t count, const Shares& shares, Move move) const {
    std::array<size_t, StageSpec::kMaxParts> next;
    for (size_t p = 0; p < StageSpec::kMaxParts; ++p) next[p] = shares[p].place;
    ForEachRun(layout, count, [&](size_t part, size_t begin, size_t run) {
      move(begin, next[part], run);
      next[part] += run;
    });
  }

  TokenRun PartTokens(size_t part, const Layout& layout, const Block& block) const {
    const uint64_t first = parts_[part].first;
    if (first >= layout.heads || layout.stride == 0) return {};
    return TokensOf(layout, first, part + 1 < parts_.size() ? parts_[part + 1].first : kNoEnd, block);
  }

  // Writes the chain's payload of the values, or these themselves where it is no smaller, and returns the size.
  static absl::StatusOr<size_t> EncodePart(const CodecChain& chain, const Block& part, std::byte* to) {
    const ByteSpan values = part.values;
    if (values.empty()) return 0;
    KVC_ASSIGN_OR_RETURN(const ChainState state, chain.Analyze(part.tensor, MemorySource(values), part.count));
    Buffer& payload = ThreadScratch().payload;
    payload.Resize(chain.MaxPayloadBytes(part.tensor, part.count));
    KVC_ASSIGN_OR_RETURN(const size_t size, chain.EncodeBlock(part, state, payload.span(), /*sums=*/nullptr));
    const ByteSpan smaller = size < values.size() ? ByteSpan(payload.span().first(size)) : values;
    std::memcpy(to, smaller.data(), smaller.size());
    return smaller.size();
  }

  static absl::Status DecodePart(const CodecChain& chain, const TensorDesc& tensor, ByteSpan payload,
                                 MutableByteSpan values) {
    if (payload.size() < values.size()) return chain.DecodeBlock(tensor, payload, values);
    if (!values.empty()) std::memcpy(values.data(), payload.data(), values.size());
    return absl::OkStatus();
  }

  // Names the value that `part` cannot hold: with its index in the tensor, which the gathered values do not have.
  absl::Status FaultOf(size_t part, const Layout& layout, const Block& block) const {
    // Of memory that a client shares, which holds other values by now.
    absl::Status fault = absl::FailedPreconditionError("its values changed while heads read them");
    const size_t width = DTypeSize(block.tensor.dtype);
    const CodecChain& chain = parts_[part].chain;
    std::vector<std::byte> room(block.count * width);
    ForEachRun(layout, block.count, [&](size_t of, size_t begin, size_t count) {
      if (of != part || absl::IsInvalidArgument(fault)) return;
      const Block run{block.tensor, block.first + begin, count, block.values.subspan(begin * width, count * width)};
      const absl::Status status = EncodePart(chain, run, room.data()).status();
      if (!status.ok()) fault = status;
    });
    return fault;
  }

  const std::vector<Part> parts_;  // the first begins with head 0
};

constexpr std::string_view kExamples[] = {
    "heads(0-1:int8(group=64),2-:int4(group=64)|rans)", "heads(0:raw,1-:planes(split=bytes,delta=none)|zstd(level=1))",
    "heads(0-2:quant(bits=6,per=token)|rans,3:clamp(limit=65504)|int3(group=64),4-:raw|zstd(level=1))",
    "heads(0:int2(group=32),1-5:bounded(min_snr=30),6-:blocknorm)|zstd(level=1)"};

MadeCodec<TensorCodec> Make(const CodecArgs& args) {
  KVC_RETURN_IF_ERROR(LayoutOf(args.tensor, 0).status());
  std::vector<Part> parts;
  for (const StageSpec::Part& part : args.stage.parts) {
    KVC_ASSIGN_OR_RETURN(CodecChain chain, part.chain.ResolvePart(args.environment, args.tensor));
    parts.push_back({part.first_head, std::move(chain)});
  }
  return std::make_unique<Heads>(std::move(parts));
}

}  // namespace

extern constinit const CodecRow kHeads = {
    .name = "heads",
    .summary = "a chain of its own for each range of heads, of tensors with a heads axis",
    .examples = kExamples,
    .needs_place = true,
    .takes_parts = true,
    .has_codecs = true,
    .make_tensor_codec = Make};

}  // namespace kvcompress
