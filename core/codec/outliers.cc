#include "kvcompress/codec/outliers.h"

#include <cmath>
#include <cstring>

#include "kvcompress/base/half.h"
#include "kvcompress/base/status_macros.h"
#include "kvcompress/codec/index_list.h"
#include "kvcompress/codec/magnitude.h"

namespace kvcompress {

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
  size_t ties = wanted;  // how many with the threshold's key are outliers
  for (size_t i = 0; i < count; ++i) ties -= MagnitudeKey(dtype, values.data(), i) > threshold;

  thread_local std::vector<uint32_t> indices;
  indices.clear();
  std::byte* out = streams[1].data;
  for (size_t i = 0; i < count; ++i) {
    const uint32_t key = MagnitudeKey(dtype, values.data(), i);
    if (key < threshold) continue;
    if (key == threshold && ties == 0) continue;
    ties -= key == threshold;
    if (!(std::fabs(LoadAsF32(dtype, values.data(), i)) <= max_magnitude)) return absl::InvalidArgumentError("");
    indices.push_back(static_cast<uint32_t>(i));
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
