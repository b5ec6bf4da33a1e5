#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "core/artifact/artifact_store.h"
#include "core/base/buffer.h"
#include "core/base/bytes.h"
#include "core/base/strided_span.h"
#include "core/base/thread_pool.h"
#include "core/tensor_report.h"

namespace kvcompress {

// The codec in this process for callers of another language: tensors are described by the service's messages,
// serialized, and their values stay where they are. The frames are byte for byte a daemon's, and so is what errors say.
//
// Any number of threads may make calls. A call of one item is worked at by the thread that makes it, one of several by
// the codec's own; they end like those of a stream: items before the first that failed have a result, and none after
// it.
class MessageCodec {
 public:
  struct Options {
    size_t threads = 0;         // that work at the items of calls; 0: one for each CPU
    std::string default_codec;  // for headers that name none
    std::string artifacts;      // directory; empty: there are none
  };
  explicit MessageCodec(const Options& options);

  // Both are read until the call returns.
  struct Tensor {
    std::string_view header;              // v1::CompressHeader
    StridedSpan<const std::byte> values;  // in the order of the tensor's elements
  };
  struct Made {
    Buffer frame;
    std::string report;  // v1::TensorReport
  };
  // `status` is that of the first item that failed: as of CompressHeaders::Read and TensorCompressor, and
  // DEADLINE_EXCEEDED for one that was not begun by the deadline.
  std::vector<Made> Compress(std::span<const Tensor> tensors, absl::Time deadline, absl::Status& status);
  // The memory of frames that were read, for frames to come: fresh memory costs more than a fast codec does.
  void Recycle(std::vector<Made> made);

  struct Frame {
    std::string_view header;        // v1::DecompressHeader
    ByteSpan frame;                 // that nobody writes meanwhile
    StridedSpan<std::byte> values;  // as many bytes as its tensor has
  };
  // What the frames say that they hold, each a v1::Tensor, before the first that cannot be read: `status` is as of
  // TensorDecompressor::ReadHeader.
  std::vector<std::string> Describe(std::span<const Frame> frames, absl::Status& status) const;

  // Returns how many of the frames were decoded before the first that failed; after that `status` is as of
  // TensorDecompressor. The values of a frame that failed, and of those that follow it, are undefined.
  size_t Decompress(std::span<const Frame> frames, absl::Time deadline, absl::Status& status);

  // The most bytes that the frame of each header's tensor can have.
  absl::StatusOr<std::vector<uint64_t>> MaxFrameBytes(std::span<const std::string_view> headers) const;

  size_t threads() const { return pool_.size(); }

 private:
  template <typename MakeWorker>
  size_t ForEach(size_t count, absl::Time deadline, absl::Status& status, MakeWorker make_worker);
  Buffer Spare();

  const std::string default_codec_;
  std::unique_ptr<ArtifactStore> artifacts_;
  Limits limits_;
  absl::Mutex mutex_;
  std::vector<Buffer> spare_ ABSL_GUARDED_BY(mutex_);
  size_t spare_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  ThreadPool pool_;
};

}  // namespace kvcompress
