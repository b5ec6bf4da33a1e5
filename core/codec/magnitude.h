#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "core/base/byte_source.h"
#include "core/base/dtype.h"
#include "core/base/status_macros.h"
#include "core/simd/key_counts.h"

// The order of a tensor's values; of dtypes that are not opaque.
namespace kvcompress {

inline uint32_t MagnitudeKey(DType dtype, const std::byte* values, size_t index) {
  return VisitBits(dtype, [&](auto zero) -> uint32_t {
    using Bits = decltype(zero);
    return simd::KeyOf(simd::KeyOrder::kMagnitude, LoadLE<Bits>(values + index * sizeof(Bits)));
  });
}

// Calls visit(values, count) for each block of the tensor, in order.
template <typename Visit>
absl::Status ForEachBlock(const ByteSource& source, DType dtype, size_t block_elements, Visit visit) {
  const uint64_t block_bytes = block_elements * DTypeSize(dtype);
  std::vector<std::byte> scratch;
  for (uint64_t at = 0; at < source.size(); at += block_bytes) {
    const auto bytes = static_cast<size_t>(std::min(block_bytes, source.size() - at));
    KVC_ASSIGN_OR_RETURN(const ByteSpan values, source.Get(at, bytes, scratch));
    visit(values.data(), bytes / DTypeSize(dtype));
  }
  return absl::OkStatus();
}

// A place among a tensor's values when all are sorted, counted from 0, and what SelectKeys says of it.
struct RankedKey {
  uint64_t rank;
  uint32_t key = 0;
};

// The keys of the values that stand at these ranks, which are sought together; the largest key there is where a rank is
// the number of values. On return `rank` is the place, from 0, among the values that have exactly this key.
absl::Status SelectKeys(const ByteSource& source, DType dtype, size_t block_elements, simd::KeyOrder order,
                        std::span<RankedKey> wanted);

// The same for one of them.
absl::Status SelectKey(const ByteSource& source, DType dtype, size_t block_elements, simd::KeyOrder order,
                       uint64_t& rank, uint32_t& key);

}  // namespace kvcompress
