#include "core/codec/range_coder.h"

#include <algorithm>

namespace kvcompress {

void RangeEncoder::Carry(const std::byte* begin, std::byte* out) {
  uint32_t sum = 0;
  while (sum == 0 && out != begin) {
    out -= 4;
    sum = LoadLE<uint32_t>(out) + 1;
    StoreLE(sum, out);
  }
}

RangeEncoders BeginRangeLanes(size_t lanes, size_t room) {
  thread_local Buffer texts;
  texts.Resize(lanes * room);
  RangeEncoders encoders;
  for (size_t lane = 0; lane < lanes; ++lane) encoders[lane] = RangeEncoder(texts.span().subspan(lane * room, room));
  return encoders;
}

size_t FinishRangeLanes(size_t lanes, RangeEncoders& encoders, MutableByteSpan encoded) {
  size_t size = 4 * (lanes - 1);
  for (size_t lane = 0; lane < lanes; ++lane) {
    if (!encoders[lane].Finish()) return 0;
    size += encoders[lane].text().size();
  }
  if (size > encoded.size()) return 0;
  std::byte* at = encoded.data() + 4 * (lanes - 1);
  for (size_t lane = 0; lane < lanes; ++lane) {
    const ByteSpan text = encoders[lane].text();
    if (lane + 1 < lanes) StoreLE(static_cast<uint32_t>(text.size()), encoded.data() + 4 * lane);
    at = std::copy(text.begin(), text.end(), at);
  }
  return size;
}

bool ReadRangeLanes(ByteSpan encoded, size_t lanes, RangeDecoders& decoders) {
  if (encoded.size() < 4 * (lanes - 1)) return false;
  ByteSpan rest = encoded.subspan(4 * (lanes - 1));
  for (size_t lane = 0; lane < lanes; ++lane) {
    const size_t size = lane + 1 < lanes ? LoadLE<uint32_t>(encoded.data() + 4 * lane) : rest.size();
    if (size > rest.size() || size % 4 != 0) return false;
    decoders[lane] = RangeDecoder(rest.first(size));
    rest = rest.subspan(size);
  }
  return true;
}

bool EndRangeLanes(size_t lanes, const RangeDecoders& decoders) {
  return std::all_of(decoders.begin(), decoders.begin() + static_cast<ptrdiff_t>(lanes),
                     [](const RangeDecoder& decoder) { return decoder.Finish(); });
}

}  // namespace kvcompress
