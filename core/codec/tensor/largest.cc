#include "core/codec/tensor/largest.h"

#include <algorithm>
#include <array>
#include <bit>

#include "core/base/status_macros.h"
#include "core/codec/magnitude.h"
#include "core/simd/kept_values.h"

namespace kvcompress {
namespace {

constexpr size_t kFew = 1024;  // of which a sample tells no more than all of them

}  // namespace

absl::Status MarkLargest(DType dtype, ByteSpan values, size_t wanted, Buffer& mask) {
  const size_t count = values.size() / DTypeSize(dtype);
  thread_local Buffer ties;
  mask.Resize((count + 63) / 64 * sizeof(uint64_t));
  ties.Resize(mask.size());
  std::fill_n(mask.data(), mask.size(), std::byte{0});
  std::fill_n(ties.data(), ties.size(), std::byte{0});
  if (wanted == 0) return absl::OkStatus();

  uint64_t rank = count - wanted;
  uint32_t threshold = 0;
  if (count <= kFew) {
    std::array<uint32_t, kFew> keys;
    for (size_t i = 0; i < count; ++i) keys[i] = MagnitudeKey(dtype, values.data(), i);
    std::nth_element(keys.begin(), keys.begin() + rank, keys.begin() + count);
    threshold = keys[rank];
  } else {
    KVC_RETURN_IF_ERROR(SelectKey(MemorySource(values), dtype, count, simd::KeyOrder::kMagnitude, rank, threshold));
  }
  const uint32_t largest =
      VisitBits(dtype, [](auto zero) -> uint32_t { return simd::MaxKey<decltype(zero)>(simd::KeyOrder::kMagnitude); });
  size_t left = wanted;
  if (threshold < largest) left -= simd::MarkMagnitudes(dtype, values.data(), count, threshold + 1, mask.data());
  simd::MarkValues(simd::MarkOf::kEqual, dtype, values.data(), count, threshold, ties.data());
  for (size_t at = 0; at < mask.size() && left > 0; at += sizeof(uint64_t)) {
    auto first = LoadLE<uint64_t>(ties.data() + at);
    while (static_cast<size_t>(std::popcount(first)) > left) first ^= std::bit_floor(first);
    left -= static_cast<size_t>(std::popcount(first));
    StoreLE(LoadLE<uint64_t>(mask.data() + at) | first, mask.data() + at);
  }
  return absl::OkStatus();
}

}  // namespace kvcompress
