#include "core/codec/tensor/outliers.h"

#include <cmath>
#include <cstring>

#include "core/base/half.h"
#include "core/base/status_macros.h"
#include "core/codec/magnitude.h"
#include "core/codec/tensor/index_list.h"

namespace kvcompress {
namespace {

// Appends the indices of all values with a key of `threshold` or more, and returns how many have more.
template <typename Bits>
size_t FindFrom(ByteSpan values, Bits threshold, std::vector<uint32_t>& indices) {
  constexpr auto kMagnitude = static_cast<Bits>(static_cast<Bits>(~Bits{0}) >> 1);
  constexpr size_t kChunk = 32;  // most have none, which a vector's maximum tells
  const size_t count = values.size() / sizeof(Bits);
  const auto key = [&](size_t i) { return static_cast<Bits>(LoadLE<Bits>(&values[i * sizeof(Bits)]) & kMagnitude); };
  size_t above = 0;
  for (size_t begin = 0; begin < count; begin += kChunk) {
    const size_t end = std::min(begin + kChunk, count);
    Bits largest = 0;
    for (size_t i = begin; i < end; ++i) largest = std::max(largest, key(i));
    if (largest < threshold) continue;
    for (size_t i = begin; i < end; ++i) {
      if (key(i) < threshold) continue;
      above += key(i) > threshold;
      indices.push_back(static_cast<uint32_t>(i));
    }
  }
  return above;
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
  KVC_RETURN_IF_ERROR(SelectMagnitude(MemorySource(ByteSpan(values)), dtype, count, rank, threshold));
  thread_local std::vector<uint32_t> indices;
  indices.clear();
  const size_t above =
      VisitBits(dtype, [&](auto bits) { return FindFrom(values, static_cast<decltype(bits)>(threshold), indices); });
  size_t ties = wanted - above;  // how many with the threshold's key are outliers
  std::erase_if(indices, [&](uint32_t i) {
    if (MagnitudeKey(dtype, values.data(), i) != threshold) return false;
    if (ties == 0) return true;
    --ties;
    return false;
  });

  std::byte* out = streams[1].data;
  for (const uint32_t i : indices) {
    if (!(std::fabs(LoadAsF32(dtype, values.data(), i)) <= max_magnitude)) return absl::InvalidArgumentError("");
    std::memcpy(out, values.data() + i * width, width);
    out += width;
    std::memset(values.data() + i * width, 0, width);
  }
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
  for (const uint32_t index : indices) {
    std::memcpy(values.data() + index * width, in, width);
    in += width;
  }
  return absl::OkStatus();
}

}  // namespace kvcompress
