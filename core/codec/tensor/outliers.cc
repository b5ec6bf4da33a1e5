#include "core/codec/tensor/outliers.h"

#include <algorithm>
#include <cstring>

#include "core/base/half.h"
#include "core/base/status_macros.h"
#include "core/codec/tensor/index_list.h"
#include "core/codec/tensor/largest.h"
#include "core/simd/value_limits.h"

namespace kvcompress {
void Outliers::StreamBounds(DType dtype, size_t count, std::span<size_t> bounds) const {
  bounds[0] = MaxIndexListBytes(Count(count));
  bounds[1] = Count(count) * DTypeSize(dtype);
}

absl::Status Outliers::Take(DType dtype, float max_magnitude, ByteSpan values, std::span<StreamBuffer> streams,
                            Buffer& rest) const {
  const size_t width = DTypeSize(dtype);
  const size_t count = values.size() / width;
  const size_t wanted = Count(count);
  thread_local Buffer mask;
  KVC_RETURN_IF_ERROR(MarkLargest(dtype, values, wanted, mask));
  rest.Resize(values.size());
  std::ranges::copy(values, rest.data());
  VisitBits(dtype, [&](auto zero) {
    using Bits = decltype(zero);
    std::byte* out = streams[1].data;
    ForEachMarked(mask.span(), [&](uint32_t index) {
      std::memcpy(out, values.data() + index * sizeof(Bits), sizeof(Bits));
      StoreLE<Bits>(Bits{0}, rest.data() + index * sizeof(Bits));
      out += sizeof(Bits);
    });
  });
  const uint32_t largest = simd::LargestBits(dtype, streams[1].data, wanted);
  if (!(LoadAsF32(dtype, &largest, 0) <= max_magnitude)) return absl::InvalidArgumentError("");
  streams[0].size = WriteIndexList(mask.span(), streams[0].data);
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
