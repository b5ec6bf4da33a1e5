#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "core/base/byte_source.h"
#include "core/base/ordered_pipeline.h"
#include "core/base/slice.h"
#include "core/base/tensor.h"
#include "core/frame/frame.h"
#include "core/output_buffer.h"
#include "core/tensor_report.h"

// Streams of frames to tensors: the mirror of compress_stream.h.
namespace kvcompress {

// Receives what a stream makes: in order, one call at a time, on threads that work. After OnError nothing follows.
class DecompressOutput {
 public:
  virtual ~DecompressOutput() = default;
  virtual void OnHeader(const TensorDesc& tensor, uint64_t elements) = 0;
  virtual void OnData(Slice values) = 0;
  virtual void OnTensor(const TensorReport& report) = 0;
  virtual void OnError(const absl::Status& status) = 0;
};

struct DecodeTask;  // of one tensor

// Decompresses frames one after another; the mirror of CompressStream.
class DecompressStream {
 public:
  DecompressStream(ThreadPool& pool, const Limits& limits, DecompressOutput& output, std::string_view client = "")
      : limits_(limits), output_(output), pipeline_(pool, client) {}
  ~DecompressStream() { Cancel(); }

  // Starts a frame; `name` goes into the report. DATA_LOSS when the frame before it is incomplete. `buffers`, if
  // not null, are for its values. `fingerprint`, if not empty, is the one that it must have. `frame_bytes`, where it is
  // known, is the frame's size: what follows is another's.
  absl::Status Begin(std::string_view name, OutputBuffers* buffers = nullptr, std::string_view fingerprint = "",
                     std::optional<uint64_t> frame_bytes = std::nullopt);
  // The next bytes of the frame. DATA_LOSS for what cannot be a frame, and for one that has not ended with its size,
  // INVALID_ARGUMENT for bytes after the end mark, ABORTED for a frame of another fingerprint than is expected, before
  // its header and values come out.
  absl::Status Append(ByteSpan bytes);
  // The same, but takes from the front of `bytes` no more than completes a part of the frame: its header, a block, its
  // end. What it takes is copied once, before any of it is looked at.
  absl::Status AppendPart(ByteSpan& bytes);
  // Whether bytes that wait do not make a block whole: here each part may.
  bool in_block() const { return false; }
  bool in_tensor() const { return reader_ != nullptr; }
  // Bytes of values whose blocks have come, of all tensors.
  uint64_t values_taken() const { return taken_; }
  // Of the current frame; empty until its header has come.
  std::optional<Footprint> footprint() const;

  // Starts and ends a frame whose bytes are read from `source`: exactly one frame. Blocks while `window` or more blocks
  // are in flight, so that small payloads that decode to large blocks cannot pile up.
  absl::Status Decompress(std::string_view name, const ByteSource& source, size_t window,
                          std::string_view fingerprint = "");

  // The end of input. DATA_LOSS when a frame is incomplete.
  absl::Status Finish() const;

  size_t blocks_in_flight() const { return pipeline_.in_flight(); }
  // Of these, those that have not begun to come out.
  size_t blocks_to_deliver() const { return pipeline_.to_deliver(); }
  uint64_t bytes_in_flight() const { return bytes_in_flight_; }
  void Flush(absl::AnyInvocable<void()> done) {
    pipeline_.Submit([] {}, std::move(done));
  }
  void set_holds(bool holds) { holds_ = holds; }
  void WorkOnHeld() { pipeline_.WorkOnHeld(); }
  void WaitBelow(size_t limit) { pipeline_.WaitBelow(limit); }
  void Cancel() { cancelled_ = true; }

 private:
  absl::Status StartTensor();
  void SubmitBlock(FrameReader::Block block);
  absl::Status Named(const absl::Status& status) const;

  Limits limits_;
  DecompressOutput& output_;
  std::atomic<bool> cancelled_ = false;
  std::atomic<uint64_t> bytes_in_flight_ = 0;
  bool failed_ = false;
  uint64_t taken_ = 0;
  std::string name_;
  std::string fingerprint_;  // that is expected
  std::optional<uint64_t> frame_bytes_;
  OutputBuffers* buffers_ = nullptr;
  std::unique_ptr<FrameReader> reader_;
  std::shared_ptr<DecodeTask> task_;
  bool holds_ = false;
  OrderedPipeline pipeline_;
};

}  // namespace kvcompress
