#pragma once

#include <sys/random.h>

#include "core/base/bytes.h"

namespace kvcompress {

// Fills `bytes`, 256 at most, with random values that nobody can guess.
inline void FillRandom(MutableByteSpan bytes) {
  // The system gives so few bytes at once, unless a signal comes before it has any.
  while (getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
  }
}

}  // namespace kvcompress
