#pragma once

#include <algorithm>
#include <bit>
#include <span>

#include "core/codec/tensor/transform/segment.h"
#include "core/codec/tensor/transform/tables.h"
#include "core/simd/channel_rans.h"

// What encoding and decoding share about the strips of a segment.
namespace kvcompress {

// A block's header: how it is stored, and, of a coded one, its step and layout before the range coder's text.
enum class BlockForm : uint8_t { kStored = 0, kCoded = 1 };

// Lanes of the entropy coder for a block of `count` values: a lane costs 3 bytes, which should not matter, 0.012 bits a
// value where lanes fill vectors, 0.006 where they do not.
constexpr size_t LanesFor(size_t count) {
  constexpr size_t kVectorsFrom = 1 << 15;
  constexpr size_t kValuesALane = 4096;
  const size_t lanes = std::bit_floor(std::max<size_t>(count / kValuesALane, 1));
  return count >= kVectorsFrom ? std::min(2 * lanes, simd::kMaxChannelLanes) : lanes;
}

// The unit of points and means: the distance of the first quantizer's points, which is the step where it is alone, is
// two of them.
constexpr float UnitOf(bool trellis, float step) { return trellis ? step : step * 0.5f; }

// Tokens of a segment that have one step and one size.
struct TokenSpan {
  size_t begin;
  size_t end;
  int step_shift;
  int class_shift;  // with that of the step
};

template <typename Visit>
void ForEachSpan(const Segment& segment, Visit visit) {
  size_t begin = 0;
  for (const SpecialToken& special : segment.special) {
    if (begin < special.token) visit(TokenSpan{begin, special.token, 0, 0});
    begin = special.token + size_t{1};
    visit(TokenSpan{special.token, begin, special.step_shift, special.class_shift + 4 * special.step_shift});
  }
  if (begin < segment.tokens) visit(TokenSpan{begin, segment.tokens, 0, 0});
}

// How a strip's channels are coded in a span of tokens.
inline simd::StripTables StripCoding(std::span<const simd::ChannelTable> all, std::span<const int> classes,
                                     int class_shift) {
  simd::StripTables tables{.all = all.data()};
  for (size_t c = 0; c < classes.size(); ++c) {
    const CodedClass coded(std::clamp(classes[c] + class_shift, kMinClass, kMaxClass));
    tables.index[c] = coded.table - kMinClass;
    tables.low_bits[c] = coded.low_bits;
    tables.has_low_bits |= coded.low_bits > 0;
  }
  return tables;
}

// The channels of strip `strip` of a segment.
inline std::span<const int> StripClasses(const Segment& segment, size_t first_channel) {
  return std::span(segment.classes)
      .subspan(first_channel, std::min(simd::kStripChannels, segment.channels - first_channel));
}

}  // namespace kvcompress
