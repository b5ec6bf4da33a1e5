#pragma once

#include <array>
#include <cstdint>

#include "kvcompress/base/bytes.h"

namespace kvcompress {

// How often each byte value occurs, in at most 2^32 - 1 bytes.
using Histogram = std::array<uint32_t, 256>;

Histogram CountBytes(ByteSpan raw);

// The same, faster if the bytes are few different ones and `sample`, a histogram of part of them, shows that.
Histogram CountBytesLike(const Histogram& sample, ByteSpan raw);

}  // namespace kvcompress
