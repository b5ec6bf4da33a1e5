#pragma once

#include <deque>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "core/compress_stream.h"
#include "core/decompress_stream.h"
#include "core/quality/quality.h"
#include "proto/wire/direction.h"
#include "proto/wire/headers/headers.h"
#include "server/session/options.h"
#include "server/session/outbox.h"

// What a session does in each direction: it feeds one of the core's streams, turns what that makes into responses in an
// outbox, and sums up the figures of the tensors.
namespace kvcompress {

// Told of every tensor that is done, on pool threads.
class SessionObserver {
 public:
  virtual ~SessionObserver() = default;
  virtual void OnCompressed(const TensorReport& report, const Quality& quality,
                            const std::vector<Violation>& violations) = 0;
  virtual void OnDecompressed(const TensorReport& report) = 0;
};

// Describe a tensor that is done, as the client gets it, and tell the observer.
void ReportCompressed(const TensorReport& report, SessionObserver& observer, v1::TensorReport& message);
void ReportDecompressed(const TensorReport& report, SessionObserver& observer, v1::TensorReport& message);

struct StreamTotals {
  uint64_t tensors = 0;
  uint64_t tensor_bytes = 0;
  uint64_t frame_bytes = 0;
  uint64_t passed_through_tensors = 0;
  uint64_t passed_through_bytes = 0;  // of these, in their own dtypes
};

// What has come out of a stream: bytes, which more bytes may follow at once, or something that ends them.
enum class Change { kBytes, kEnd };

// What both directions share. `on_change` is called without locks after there was something new.
template <typename Response>
class StreamWork {
 public:
  StreamWork(SessionObserver& observer, std::function<void(Change)> on_change)
      : observer_(observer), on_change_(std::move(on_change)) {}

  Outbox<Response>& outbox() { return outbox_; }
  const Outbox<Response>& outbox() const { return outbox_; }

  // The first error of a block; OK while there was none.
  absl::Status error() const {
    absl::MutexLock lock(&mutex_);
    return error_;
  }
  StreamTotals totals() const {
    absl::MutexLock lock(&mutex_);
    return totals_;
  }

 protected:
  void Fail(const absl::Status& status) {
    {
      absl::MutexLock lock(&mutex_);
      error_ = status;
    }
    on_change_(Change::kEnd);
  }
  // Counts a tensor, and sends its report.
  void Finish(const TensorReport& report, Response response) {
    // The response first: who sees the tensor counted and the outbox empty may take it for written.
    outbox_.Add(std::move(response));
    {
      absl::MutexLock lock(&mutex_);
      ++totals_.tensors;
      totals_.tensor_bytes += report.tensor_bytes;
      totals_.frame_bytes += report.frame_bytes;
      totals_.passed_through_tensors += report.passed_through ? 1 : 0;
      totals_.passed_through_bytes += report.passed_through ? report.tensor_bytes : 0;
    }
    on_change_(Change::kEnd);
  }

  SessionObserver& observer_;
  const std::function<void(Change)> on_change_;
  Outbox<Response> outbox_;

 private:
  mutable absl::Mutex mutex_;
  absl::Status error_ ABSL_GUARDED_BY(mutex_);
  StreamTotals totals_ ABSL_GUARDED_BY(mutex_);
};

class CompressStreamWork final : public StreamWork<v1::CompressResponse>, public CompressOutput {
 public:
  using Direction = CompressDirection;
  using Stream = CompressStream;
  using StreamWork::StreamWork;

  // The stream's own methods, with the arguments that a session has.
  absl::Status Begin(Stream& stream, const v1::CompressHeader& header, const SessionOptions& options,
                     OutputBuffers* buffers);
  static absl::Status AppendPart(Stream& stream, Slice& bytes) { return stream.AppendPart(bytes); }
  // How many bytes of input the tensor of a batch has that was begun last. INVALID_ARGUMENT where that is not known.
  static absl::StatusOr<uint64_t> InputBytes(const Stream& stream, const v1::CompressHeader& header);

  void OnFrame(Slice bytes) override;
  void OnTensor(const TensorReport& report) override;
  void OnError(const absl::Status& status) override { Fail(status); }

  // Ends the stream. After the last tensor's report.
  void SendStreamReport(double seconds);

 private:
  CompressHeaders headers_;
  absl::Mutex policies_mutex_;
  std::deque<std::string> policies_ ABSL_GUARDED_BY(policies_mutex_);  // of tensors that have begun and are not done
  QualityMerger merger_;
};

class DecompressStreamWork final : public StreamWork<v1::DecompressResponse>, public DecompressOutput {
 public:
  using Direction = DecompressDirection;
  using Stream = DecompressStream;
  using StreamWork::StreamWork;

  static absl::Status Begin(Stream& stream, const v1::DecompressHeader& header, const SessionOptions& options,
                            OutputBuffers* buffers);
  static absl::Status AppendPart(Stream& stream, Slice& bytes) { return stream.AppendPart(bytes.bytes); }
  static absl::StatusOr<uint64_t> InputBytes(const Stream& stream, const v1::DecompressHeader& header);

  void OnHeader(const TensorDesc& tensor, uint64_t elements) override;
  void OnData(Slice values) override;
  void OnTensor(const TensorReport& report) override;
  void OnError(const absl::Status& status) override { Fail(status); }

  void SendStreamReport(double seconds);
};

}  // namespace kvcompress
