#pragma once

#include <sys/random.h>

#include "core/base/bytes.h"

namespace kvcompress {

// Fills at most 256 bytes with what nobody can guess.
inline void FillRandom(MutableByteSpan bytes) {
  // Of so few bytes the system gives all, unless a signal comes while it has none yet.
  while (getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
  }
}

}  // namespace kvcompress
