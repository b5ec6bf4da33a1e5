#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/codec/tensor/transform/basis.h"
#include "core/codec/tensor/transform/block.h"
#include "core/codec/tensor/transform/header.h"
#include "core/codec/tensor/transform/reconstruction.h"
#include "core/codec/tensor/transform/side.h"
#include "core/codec/tensor/transform/strip.h"
#include "core/simd/channel_rans.h"

namespace kvcompress {
namespace {

using simd::kStripChannels;

// Buffers that a thread uses again for every block.
struct Scratch {
  std::vector<float> values;
  simd::RotaryTable turns;

  static Scratch& OfThread() {
    thread_local Scratch scratch;
    return scratch;
  }
};

absl::Status Fault(const char* what) { return absl::DataLossError(absl::StrCat("transform: ", what)); }

// The escapes of a block: its side information ends with them.
class Escapes final : public simd::EscapeReader {
 public:
  Escapes(SideReader& side, SideModels& models) : side_(side), models_(models) {}

  int32_t Next() override {
    int32_t beyond = 0;
    models_.CodeEscape(side_, 0, beyond);
    return beyond;
  }

 private:
  SideReader& side_;
  SideModels& models_;
};

class Decoder {
 public:
  // `values`: where the block's go.
  Decoder(const TransformFormat& format, const TransformHeader& header, ByteSpan side, DType dtype, std::byte* values)
      : format_(format),
        header_(header),
        tables_(ChannelTables(format.trellis)),
        basis_(format.artifact.get(), header.layout),
        reconstruction_(format, header.layout, header.step, basis_, dtype, values),
        side_(side) {}

  absl::Status Decode(ByteSpan words, size_t count) {
    std::vector<Segment> segments = CutIntoSegments(header_.layout, count);
    const Segment* before = nullptr;
    Segment expected;
    for (Segment& segment : segments) {
      if (basis_.Changes(segment)) {
        expected = basis_.Expected(segment, UnitOf(format_.trellis, header_.step));
        before = &expected;
      }
      if (!models_.CodeSegment(side_, before, segment)) return Fault("side information out of bounds");
      if (segment.turned && (!segment.is_whole || header_.layout.RotaryDims(format_) == 0)) {
        return Fault("a segment is turned that cannot be");
      }
      before = &segment;
    }
    if (!rans_.Begin(LanesFor(count), reinterpret_cast<const uint8_t*>(words.data()), words.size())) {
      return Fault("words end in their states");
    }
    Scratch& scratch = Scratch::OfThread();
    for (const Segment& segment : segments) {
      scratch.values.resize(segment.count());
      for (size_t c = 0; c < segment.channels; c += kStripChannels) {
        if (!DecodeStrip(segment, c, scratch)) return Fault("words do not decode to their values");
      }
      reconstruction_.Finish(segment, scratch.turns, scratch.values.data());
    }
    if (!rans_.Finish() || !side_.Finish()) return Fault("block does not end where its values do");
    return absl::OkStatus();
  }

 private:
  bool DecodeStrip(const Segment& segment, size_t first_channel, Scratch& scratch) {
    const std::span<const int> classes = StripClasses(segment, first_channel);
    const Reconstruction::Scale scale = reconstruction_.ScaleOf(segment, first_channel, classes.size());
    const simd::PlacedValues placed = reconstruction_.PlaceOf(segment, first_channel, scratch.values.data());
    simd::StripStates states = {};
    bool ok = true;
    ForEachSpan(segment, [&](const TokenSpan& span) {
      const simd::StripTables coding = StripCoding(tables_, classes, span.class_shift);
      const simd::Placing placing{placed.After(span.begin), std::ldexp(scale.unit, -span.step_shift),
                                  scale.means.data()};
      ok = ok && simd::DecodeStrip(coding, span.end - span.begin, classes.size(), format_.trellis ? &states : nullptr,
                                   rans_, escapes_, placing);
    });
    return ok;
  }

  const TransformFormat& format_;
  const TransformHeader& header_;
  const std::span<const simd::ChannelTable> tables_;
  SegmentBasis basis_;
  Reconstruction reconstruction_;
  SideReader side_;
  SideModels models_;
  Escapes escapes_{side_, models_};
  simd::ChannelRansDecoder rans_;
};

}  // namespace

absl::Status DecodeTransform(const TransformFormat& format, DType dtype, ByteSpan side, ByteSpan words,
                             MutableByteSpan values) {
  const size_t count = values.size() / DTypeSize(dtype);
  if (count == 0) return side.empty() && words.empty() ? absl::OkStatus() : Fault("bytes of no values");
  TransformHeader header;
  if (!ReadHeader(side, count, format.artifact != nullptr, header)) return Fault("header is not one");
  if (format.artifact != nullptr && !BasisFits(*format.artifact, header.layout, count)) {
    return Fault("the block is none of its artifact's tensors");
  }
  if (header.form == BlockForm::kStored) {
    if (side.size() != values.size() || !words.empty()) return Fault("stored values have the wrong size");
    std::copy(side.begin(), side.end(), values.begin());
    return absl::OkStatus();
  }
  return Decoder(format, header, side, dtype, values.data()).Decode(words, count);
}

}  // namespace kvcompress
