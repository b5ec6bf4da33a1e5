#pragma once

#include <cstdint>
#include <memory>

#include "core/base/bytes.h"

struct XXH3_state_s;

namespace kvcompress {

// XXH3 with 64 bits of bytes that come in parts.
class Digest {
 public:
  explicit Digest(uint64_t seed = 0) { Reset(seed); }
  void Reset(uint64_t seed = 0);
  void Update(ByteSpan bytes);
  uint64_t value() const;

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  static XXH3_state_s* NewState();

  std::unique_ptr<XXH3_state_s, Free> state_{NewState()};
};

}  // namespace kvcompress
