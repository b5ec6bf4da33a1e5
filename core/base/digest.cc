#include "core/base/digest.h"

#include <new>

#include "core/base/xxh3.h"

namespace kvcompress {

XXH3_state_s* Digest::NewState() {
  XXH3_state_s* state = XXH3_createState();
  if (state == nullptr) throw std::bad_alloc();
  return state;
}

void Digest::Free::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }

void Digest::Reset(uint64_t seed) { XXH3_64bits_reset_withSeed(state_.get(), seed); }
void Digest::Update(ByteSpan bytes) { XXH3_64bits_update(state_.get(), bytes.data(), bytes.size()); }
uint64_t Digest::value() const { return XXH3_64bits_digest(state_.get()); }

}  // namespace kvcompress
