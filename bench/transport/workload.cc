#include "bench/transport/workload.h"

#include <algorithm>
#include <cstring>

#include "core/base/status_macros.h"
#include "core/compress_stream.h"
#include "core/decompress_stream.h"
#include "core/frame_plan.h"
#include "tests/testing/values.h"

namespace kvcompress::bench {

absl::StatusOr<Workload> Workload::Make(size_t streams, uint64_t tensor_bytes, size_t message_bytes) {
  constexpr uint64_t kTokenBytes = 8 * 128 * 2;  // 8 heads of 128 FP16 values
  const auto fits = [](uint64_t bytes) {
    return bytes > 0 && bytes % kTokenBytes == 0 && (kBufferBytes % bytes == 0 || bytes % kBufferBytes == 0);
  };
  if (streams == 0 || message_bytes > kBufferBytes || !fits(tensor_bytes) || !fits(message_bytes)) {
    return absl::InvalidArgumentError("streams, or sizes of tensors or messages, that cannot be sent");
  }
  Workload workload;
  workload.streams = streams;
  workload.message_bytes = static_cast<size_t>(std::min<uint64_t>(message_bytes, tensor_bytes));
  workload.tensor = {
      .name = "layer_0_key", .dtype = DType::kF16, .shape = {1, 8, tensor_bytes / kTokenBytes, 128}, .axes = {}};
  workload.tensor.axes = DefaultAxes(workload.tensor.name, workload.tensor.shape.size());
  workload.tensor_bytes = tensor_bytes;
  KVC_ASSIGN_OR_RETURN(workload.frame_bytes, MaxFrameBytes(workload.tensor, kCodec));
  return workload;
}

ByteSpan Values() {
  static const std::vector<std::byte> values = [] {
    constexpr size_t kPeriod = size_t{1} << 20;
    std::vector<std::byte> bytes(kBufferBytes);
    const auto period = testing::MakeValues(DType::kF16, kPeriod / 2, testing::Distribution::kOutliers);
    for (size_t at = 0; at < kBufferBytes; at += kPeriod) std::memcpy(bytes.data() + at, period.data(), kPeriod);
    return bytes;
  }();
  return values;
}

absl::StatusOr<ByteSpan> TensorSource::Get(uint64_t offset, size_t count, std::vector<std::byte>& scratch) const {
  if (offset > size_ || count > size_ - offset) return absl::OutOfRangeError("read past the end of the tensor");
  const size_t at = static_cast<size_t>(offset % kBufferBytes);
  if (count <= kBufferBytes - at) return buffer_.subspan(at, count);
  scratch.resize(count);
  for (size_t done = 0; done < count;) {
    const size_t from = static_cast<size_t>((offset + done) % kBufferBytes);
    const size_t take = std::min(count - done, kBufferBytes - from);
    std::memcpy(scratch.data() + done, buffer_.data() + from, take);
    done += take;
  }
  return ByteSpan(scratch);
}

}  // namespace kvcompress::bench
