#include "core/simd/rans_group.h"

namespace kvcompress::simd::scalar {

size_t RansEncode(const RansSymbolTable& symbols, const uint8_t* raw, size_t count, size_t lanes, uint8_t* out,
                  size_t capacity) {
  internal::RansEncoder encoder(symbols, lanes, out, capacity);
  const size_t groups = count / lanes;
  if (!encoder.EncodeGroup(raw + groups * lanes, count % lanes)) return 0;
  return encoder.EncodeGroups(raw, groups) ? encoder.Finish() : 0;
}

bool RansDecode(const RansSlotTable& slots, const uint8_t* in, size_t size, size_t lanes, uint8_t* raw, size_t count) {
  internal::RansDecoder decoder(slots, lanes, in);
  if (!decoder.Begin(size)) return false;
  for (size_t at = 0; at < count; at += lanes) {
    if (!decoder.DecodeGroup(raw + at, std::min(lanes, count - at))) return false;
  }
  return decoder.Finish();
}

}  // namespace kvcompress::simd::scalar
