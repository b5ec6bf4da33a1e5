#include "client/local_client.h"

#include <atomic>

#include "client/deadline.h"
#include "core/base/status_macros.h"
#include "core/base/thread_pool.h"
#include "core/compress_stream.h"
#include "core/decompress_stream.h"

namespace kvcompress {
namespace {

// What both directions do with what comes out of a stream: hand it to the sink until the first error.
template <typename Stream>
class Relay {
 public:
  explicit Relay(absl::Time deadline) : deadline_(deadline) {}

  // Call it before any job is submitted.
  void Attach(Stream& stream) { stream_ = &stream; }

  bool failed() const { return failed_; }
  // Read it only when the stream is idle.
  const absl::Status& status() const { return status_; }

 protected:
  // Deliveries come one at a time; other threads look at `failed_` alone.
  void Keep(const absl::Status& status) {
    if (status.ok() || failed_) return;
    status_ = status;
    failed_ = true;
    stream_->Cancel();
  }

  template <typename Call>
  void Forward(Call call) {
    const absl::Status in_time = CheckDeadline(deadline_);
    Keep(in_time.ok() ? call() : in_time);
  }

 private:
  const absl::Time deadline_;
  Stream* stream_ = nullptr;
  absl::Status status_;
  std::atomic<bool> failed_ = false;
};

class CompressRelay final : public Relay<CompressStream>, public CompressOutput {
 public:
  CompressRelay(absl::Time deadline, CompressSink& sink) : Relay(deadline), sink_(sink) {}

  void OnFrame(Slice bytes) override {
    Forward([&] { return sink_.OnFrame(bytes.bytes); });
  }
  void OnTensor(const TensorReport& report) override {
    Forward([&] { return sink_.OnTensor(report); });
  }
  void OnError(const absl::Status& status) override { Keep(status); }

 private:
  CompressSink& sink_;
};

class DecompressRelay final : public Relay<DecompressStream>, public DecompressOutput {
 public:
  DecompressRelay(absl::Time deadline, DecompressSink& sink) : Relay(deadline), sink_(sink) {}

  void OnHeader(const TensorDesc& tensor, uint64_t) override {
    Forward([&] { return sink_.OnHeader(tensor); });
  }
  void OnData(Slice values) override {
    Forward([&] { return sink_.OnData(values.bytes); });
  }
  void OnTensor(const TensorReport& report) override {
    Forward([&] { return sink_.OnTensor(report); });
  }
  void OnError(const absl::Status& status) override { Keep(status); }

 private:
  DecompressSink& sink_;
};

class LocalClient final : public CodecClient {
 public:
  LocalClient(size_t threads, const CodecEnvironment& environment)
      : pool_(threads),
        limits_{.max_tensor_bytes = kNoLimits.max_tensor_bytes, .environment = environment},
        window_(4 * pool_.size()) {}

  absl::Status Compress(std::span<const CompressJob> jobs, absl::Time deadline, CompressSink& sink) override {
    const auto submit = [&](CompressStream& stream, const CompressJob& job) {
      return stream.Compress(job.tensor, job.codec, *job.source, window_);
    };
    return Run<CompressStream, CompressRelay>(jobs, deadline, sink, submit);
  }

  absl::Status Decompress(std::span<const DecompressJob> jobs, absl::Time deadline, DecompressSink& sink) override {
    const auto submit = [&](DecompressStream& stream, const DecompressJob& job) {
      return stream.Decompress(job.name, *job.source, window_, job.fingerprint);
    };
    return Run<DecompressStream, DecompressRelay>(jobs, deadline, sink, submit);
  }

 private:
  // The first error in the order of the jobs: a block's error comes before that of a job which was begun after it.
  template <typename Stream, typename Output, typename Job, typename Sink, typename Submit>
  absl::Status Run(std::span<const Job> jobs, absl::Time deadline, Sink& sink, Submit submit) {
    KVC_RETURN_IF_ERROR(pool_.status());
    Output relay(deadline, sink);
    Stream stream(pool_, limits_, relay);
    relay.Attach(stream);
    absl::Status submitted;
    for (const Job& job : jobs) {
      if (relay.failed() || !submitted.ok()) break;
      submitted = submit(stream, job);
    }
    stream.WaitBelow(1);
    return relay.failed() ? relay.status() : submitted;
  }

  ThreadPool pool_;
  const Limits limits_;
  const size_t window_;  // blocks in flight: enough that no thread waits while another writes
};

class PlainBuffer final : public SharedBuffer {
 public:
  explicit PlainBuffer(size_t bytes) : buffer_(bytes) {}
  MutableByteSpan bytes() override { return buffer_.span(); }

 private:
  Buffer buffer_;
};

}  // namespace

std::unique_ptr<SharedBuffer> CodecClient::Allocate(size_t bytes) { return std::make_unique<PlainBuffer>(bytes); }

std::unique_ptr<CodecClient> MakeLocalClient(size_t threads, const CodecEnvironment& environment) {
  return std::make_unique<LocalClient>(threads, environment);
}

}  // namespace kvcompress
