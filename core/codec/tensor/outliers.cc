#include "core/codec/tensor/outliers.h"

#include <cmath>
#include <cstring>

#include "core/base/half.h"
#include "core/base/status_macros.h"
#include "core/codec/magnitude.h"
#include "core/codec/tensor/index_list.h"

namespace kvcompress {
namespace {

// Moves `wanted` of the values at these indices, all with a key of `threshold` or more, to `out`, leaves +0 in their
// places, and leaves their indices. Of those with just this key it takes the first. False for one above
// `max_magnitude`.
template <typename Bits>
bool TakeWords(DType dtype, float max_magnitude, MutableByteSpan values, uint32_t threshold, size_t wanted,
               std::vector<uint32_t>& indices, std::byte* out) {
  const auto bits_at = [&](uint32_t i) { return LoadLE<Bits>(values.data() + i * sizeof(Bits)); };
  const auto key_at = [&](uint32_t i) { return simd::KeyOf(simd::KeyOrder::kMagnitude, bits_at(i)); };
  size_t ties = wanted;
  for (const uint32_t i : indices) ties -= key_at(i) > threshold;
  size_t taken = 0;
  for (const uint32_t i : indices) {
    if (key_at(i) == threshold) {
      if (ties == 0) continue;
      --ties;
    }
    const auto bits = bits_at(i);
    const uint32_t word = bits;
    if (!(std::fabs(LoadAsF32(dtype, &word, 0)) <= max_magnitude)) return false;
    StoreLE<Bits>(bits, out + taken * sizeof(Bits));
    StoreLE<Bits>(Bits{0}, values.data() + i * sizeof(Bits));
    indices[taken++] = i;
  }
  indices.resize(taken);
  return true;
}

}  // namespace

void Outliers::StreamBounds(DType dtype, size_t count, std::span<size_t> bounds) const {
  bounds[0] = MaxIndexListBytes(Count(count));
  bounds[1] = Count(count) * DTypeSize(dtype);
}

absl::Status Outliers::Take(DType dtype, float max_magnitude, MutableByteSpan values,
                            std::span<StreamBuffer> streams) const {
  const size_t width = DTypeSize(dtype);
  const size_t count = values.size() / width;
  const size_t wanted = Count(count);
  streams[0].size = streams[1].size = 0;
  if (wanted == 0) return absl::OkStatus();

  uint64_t rank = count - wanted;
  uint32_t threshold = 0;
  KVC_RETURN_IF_ERROR(
      SelectKey(MemorySource(ByteSpan(values)), dtype, count, simd::KeyOrder::kMagnitude, rank, threshold));
  thread_local std::vector<uint32_t> indices;
  indices.clear();
  simd::FindMagnitudes(dtype, values.data(), count, threshold, ~uint32_t{0}, indices);
  const bool held = VisitBits(dtype, [&](auto zero) {
    return TakeWords<decltype(zero)>(dtype, max_magnitude, values, threshold, wanted, indices, streams[1].data);
  });
  if (!held) return absl::InvalidArgumentError("");
  streams[0].size = WriteIndexList(indices, streams[0].data);
  streams[1].size = wanted * width;
  return absl::OkStatus();
}

absl::Status Outliers::Put(DType dtype, std::span<const ByteSpan> streams, MutableByteSpan values) const {
  const size_t width = DTypeSize(dtype);
  const size_t count = values.size() / width;
  if (streams[1].size() != Count(count) * width) return absl::DataLossError("outliers have the wrong size");
  thread_local std::vector<uint32_t> indices;
  KVC_RETURN_IF_ERROR(ReadIndexList(streams[0], Count(count), count, indices));
  const std::byte* in = streams[1].data();
  VisitBits(dtype, [&](auto zero) {
    using Bits = decltype(zero);
    for (const uint32_t index : indices) {
      std::memcpy(values.data() + index * sizeof(Bits), in, sizeof(Bits));
      in += sizeof(Bits);
    }
  });
  return absl::OkStatus();
}

}  // namespace kvcompress
