#pragma once

#include <cstdint>
#include <numeric>

// How many elements a block has: every block of a tensor but its last one.
namespace kvcompress {

inline constexpr uint32_t kBlockElementsMultiple = 128;  // whole groups of every codec
inline constexpr uint32_t kMaxBlockElements = 1u << 22;
inline constexpr uint32_t kDefaultBlockElements = 1u << 17;
inline constexpr uint32_t kMaxCompactElements = 1u << 16;  // of a tensor whose frame may be compact

// The largest size of at most `limit` elements that has whole units of `unit` > 0, a token's values for example: a
// multiple of both. 0 where there is none.
constexpr uint32_t BlockOfUnits(uint64_t unit, uint32_t limit = kDefaultBlockElements) {
  if (unit > limit) return 0;
  const uint64_t step = std::lcm(unit, uint64_t{kBlockElementsMultiple});
  return static_cast<uint32_t>(limit / step * step);
}

}  // namespace kvcompress
