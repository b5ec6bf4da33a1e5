#include "core/simd/trellis.h"

namespace kvcompress::simd {

void TrellisQuantize(const float* y, size_t tokens, uint32_t* decisions, int32_t* k) {
  scalar::TrellisQuantize(y, tokens, decisions, k);
}
void PlainQuantize(const float* y, size_t tokens, int32_t* k) { scalar::PlainQuantize(y, tokens, k); }
void StripSymbols(const StripTables& tables, const StripLowBits& low_bits, const int32_t* k, size_t tokens,
                  size_t channels, StripStates* states, uint8_t* symbols, uint32_t* escapes) {
  scalar::StripSymbols(tables, low_bits, k, tokens, channels, states, symbols, escapes);
}

}  // namespace kvcompress::simd
