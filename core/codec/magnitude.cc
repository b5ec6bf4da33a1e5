#include "core/codec/magnitude.h"

namespace kvcompress {
namespace {

// Counts the keys that have the bits of `key` where `found` has ones, by `mask` of their bits from `low` on.
template <typename Bits>
void CountKeys(const std::byte* values, size_t count, uint32_t found, uint32_t key, int low, uint32_t mask,
               uint64_t* histogram) {
  const uint32_t magnitude = static_cast<Bits>(~Bits{0}) >> 1;
  for (size_t i = 0; i < count; ++i) {
    const uint32_t own = LoadLE<Bits>(values + i * sizeof(Bits)) & magnitude;
    if ((own & found) == key) ++histogram[(own >> low) & mask];
  }
}

}  // namespace

// By radix: the upper bits first, then the lower ones of the bucket that was hit.
absl::Status SelectMagnitude(const ByteSource& source, DType dtype, size_t block_elements, uint64_t& rank,
                             uint32_t& key) {
  thread_local std::vector<uint64_t> histogram;
  key = 0;
  uint32_t found_bits = 0;  // mask of the key bits that are settled
  for (int low = static_cast<int>(8 * DTypeSize(dtype)) - 1; low > 0;) {
    const int bits = std::min(16, low);
    low -= bits;
    const uint32_t mask = (1u << bits) - 1;
    histogram.assign(size_t{1} << bits, 0);
    KVC_RETURN_IF_ERROR(ForEachBlock(source, dtype, block_elements, [&](const std::byte* values, size_t n) {
      VisitBits(dtype,
                [&](auto own) { CountKeys<decltype(own)>(values, n, found_bits, key, low, mask, histogram.data()); });
    }));
    uint32_t bucket = 0;
    while (bucket < mask && histogram[bucket] <= rank) rank -= histogram[bucket++];
    key |= bucket << low;
    found_bits |= mask << low;
  }
  return absl::OkStatus();
}

}  // namespace kvcompress
