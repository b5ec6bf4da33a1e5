#include <array>

#include "core/codec/bit_context.h"
#include "core/codec/histogram.h"
#include "core/codec/range_coder.h"
#include "core/codec/registry.h"

namespace kvcompress {
namespace {

// A context for each start of a byte's bits, highest first: 1 followed by these bits.
using ByteContexts = std::array<BitContext, 256>;

// docs/format.md, "cabac": lanes of a range coder, with contexts of their own.
class Cabac final : public ByteCodec {
 public:
  absl::StatusOr<size_t> Encode(ByteSpan raw, MutableByteSpan encoded) const override {
    if (raw.empty() || !SeemsToShrink(raw)) return size_t{0};
    const size_t lanes = RangeLanesFor(raw.size());
    RangeEncoders encoders = BeginRangeLanes(lanes, encoded.size());
    if (lanes == 1) {
      EncodeAll<1>(raw, encoders);
    } else {
      EncodeAll<kRangeLanes>(raw, encoders);
    }
    return FinishRangeLanes(lanes, encoders, encoded);
  }

  absl::Status Decode(ByteSpan encoded, MutableByteSpan raw) const override {
    const size_t lanes = RangeLanesFor(raw.size());
    RangeDecoders decoders;
    if (!ReadRangeLanes(encoded, lanes, decoders)) return absl::DataLossError("cabac: lanes do not fit their stream");
    if (lanes == 1) {
      DecodeAll<1>(decoders, raw);
    } else {
      DecodeAll<kRangeLanes>(decoders, raw);
    }
    if (!EndRangeLanes(lanes, decoders)) return absl::DataLossError("cabac: stream does not decode to its size");
    return absl::OkStatus();
  }

 private:
  // Codes the next `kLanes` bytes, bit by bit in turns.
  template <size_t kLanes>
  static void EncodeGroup(const std::byte* raw, ByteContexts* contexts, RangeEncoder* encoders) {
    std::array<uint32_t, kLanes> node;
    node.fill(1);
    for (int bit = 7; bit >= 0; --bit) {
      for (size_t lane = 0; lane < kLanes; ++lane) {
        const bool value = (std::to_integer<uint32_t>(raw[lane]) >> bit & 1) != 0;
        BitContext& context = contexts[lane][node[lane]];
        encoders[lane].EncodeBit(value, context.probability());
        context.Learn(value);
        node[lane] = 2 * node[lane] + value;
      }
    }
  }

  template <size_t kLanes>
  static void EncodeAll(ByteSpan raw, RangeEncoders& encoders) {
    std::array<ByteContexts, kLanes> contexts;
    RangeEncoders own = encoders;
    size_t i = 0;
    for (; i + kLanes <= raw.size(); i += kLanes) EncodeGroup<kLanes>(raw.data() + i, contexts.data(), own.data());
    for (size_t lane = 0; i < raw.size(); ++lane, ++i) EncodeGroup<1>(raw.data() + i, &contexts[lane], &own[lane]);
    encoders = own;
  }

  template <size_t kLanes>
  static void DecodeGroup(std::byte* raw, ByteContexts* contexts, RangeDecoder* decoders) {
    std::array<uint32_t, kLanes> node;
    node.fill(1);
    for (int bit = 0; bit < 8; ++bit) {
      for (size_t lane = 0; lane < kLanes; ++lane) {
        BitContext& context = contexts[lane][node[lane]];
        const bool value = decoders[lane].DecodeBit(context.probability());
        context.Learn(value);
        node[lane] = 2 * node[lane] + value;
      }
    }
    for (size_t lane = 0; lane < kLanes; ++lane) raw[lane] = static_cast<std::byte>(node[lane] & 0xff);
  }

  template <size_t kLanes>
  static void DecodeAll(RangeDecoders& decoders, MutableByteSpan raw) {
    std::array<ByteContexts, kLanes> contexts;
    RangeDecoders own = decoders;
    size_t i = 0;
    for (; i + kLanes <= raw.size(); i += kLanes) DecodeGroup<kLanes>(raw.data() + i, contexts.data(), own.data());
    for (size_t lane = 0; i < raw.size(); ++lane, ++i) DecodeGroup<1>(raw.data() + i, &contexts[lane], &own[lane]);
    decoders = own;
  }
};

constexpr std::string_view kExamples[] = {"raw|cabac"};

}  // namespace

extern constinit const CodecRow kCabac =
    RowOf<Cabac>("cabac", "adaptive binary contexts over each stream; small and slowest", kExamples);

}  // namespace kvcompress
