#pragma once

#include <atomic>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/notification.h"
#include "core/base/byte_source.h"
#include "core/base/tensor.h"

// What the contestants have in common: the tensors that they send, and the count of what came back.
namespace kvcompress::bench {

inline constexpr char kCodec[] = "int4(group=64)";
inline constexpr size_t kBufferBytes = size_t{64} << 20;

// Tensors of one size, sent one after another on each of a number of streams. Their values are those of one warm
// buffer, which larger tensors go through again and again.
struct Workload {
  size_t streams = 1;
  size_t message_bytes = size_t{1} << 20;  // of a tensor in one message
  TensorDesc tensor = {};
  uint64_t tensor_bytes = 0;
  uint64_t frame_bytes = 0;

  // INVALID_ARGUMENT unless tensors and messages divide the buffer, or are divided by it.
  static absl::StatusOr<Workload> Make(size_t streams, uint64_t tensor_bytes, size_t message_bytes);
};

// kBufferBytes of FP16 values: Gaussian, with outliers.
ByteSpan Values();

// The values of one tensor of any size, from a buffer of kBufferBytes.
class TensorSource final : public ByteSource {
 public:
  TensorSource(ByteSpan buffer, uint64_t size) : buffer_(buffer), size_(size) {}
  uint64_t size() const override { return size_; }
  absl::StatusOr<ByteSpan> Get(uint64_t offset, size_t count, std::vector<std::byte>& scratch) const override;

 private:
  const ByteSpan buffer_;
  const uint64_t size_;
};

// Counts what all streams of a contestant have received, and tells them when to stop. Thread-safe.
class Progress {
 public:
  void Add(uint64_t frame_bytes) { frame_bytes_.fetch_add(frame_bytes, std::memory_order_relaxed); }
  uint64_t frame_bytes() const { return frame_bytes_.load(std::memory_order_relaxed); }

  void Stop() { stop_.Notify(); }
  bool stopped() const { return stop_.HasBeenNotified(); }
  void WaitForStop() const { stop_.WaitForNotification(); }

 private:
  std::atomic<uint64_t> frame_bytes_ = 0;
  absl::Notification stop_;
};

}  // namespace kvcompress::bench
