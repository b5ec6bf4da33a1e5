#include "kvcompress/codec/magnitude.h"

namespace kvcompress {

// By radix: the upper bits first, then the lower ones of the bucket that was hit.
absl::Status SelectMagnitude(const ByteSource& source, DType dtype, size_t block_elements, uint64_t& rank,
                             uint32_t& key) {
  thread_local std::vector<uint64_t> histogram;
  key = 0;
  uint32_t found_bits = 0;  // mask of the key bits that are settled
  for (int low = dtype == DType::kF32 ? 31 : 15; low > 0;) {
    const int bits = std::min(16, low);
    low -= bits;
    const uint32_t mask = (1u << bits) - 1;
    histogram.assign(size_t{1} << bits, 0);
    KVC_RETURN_IF_ERROR(ForEachBlock(source, dtype, block_elements, [&](const std::byte* values, size_t n) {
      for (size_t i = 0; i < n; ++i) {
        const uint32_t own = MagnitudeKey(dtype, values, i);
        if ((own & found_bits) == key) ++histogram[(own >> low) & mask];
      }
    }));
    uint32_t bucket = 0;
    while (bucket < mask && histogram[bucket] <= rank) rank -= histogram[bucket++];
    key |= bucket << low;
    found_bits |= mask << low;
  }
  return absl::OkStatus();
}

}  // namespace kvcompress
