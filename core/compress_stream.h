#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "core/base/buffer.h"
#include "core/base/byte_source.h"
#include "core/base/ordered_pipeline.h"
#include "core/base/slice.h"
#include "core/base/tensor.h"
#include "core/output_buffer.h"
#include "core/tensor_report.h"

// Streams of tensors to frames. Blocks are encoded on a pool; everything that comes out comes in order. What arrives
// may be pushed in pieces (a network stream) or read by the workers from a source (a file); both give the same bytes.
namespace kvcompress {

// Receives what a stream makes: in order, one call at a time, on threads that work on blocks. After OnError nothing
// follows.
class CompressOutput {
 public:
  virtual ~CompressOutput() = default;
  virtual void OnFrame(Slice bytes) = 0;                  // the next bytes of the current frame
  virtual void OnTensor(const TensorReport& report) = 0;  // ends a frame
  virtual void OnError(const absl::Status& status) = 0;
};

struct EncodeTask;  // of one tensor

// The values of a block as they came.
struct BlockInput {
  std::vector<Slice> pieces;
  Buffer copy;  // in place of the pieces, where there were too many or something must see all of them at once
  uint64_t copied_bytes = 0;
};

// Compresses tensors one after another. Calls come from one thread at a time; a call that fails leaves the stream
// unusable. Errors of the caller's are returned, those of blocks go to the output.
class CompressStream {
 public:
  // `client`: for whom, as the pool shares its threads.
  CompressStream(ThreadPool& pool, const Limits& limits, CompressOutput& output, std::string_view client = "")
      : limits_(limits), output_(output), pipeline_(pool, client) {}
  // Waits for the blocks in flight; they are skipped, not finished.
  ~CompressStream() { Cancel(); }

  // Starts a tensor whose bytes Append brings. INVALID_ARGUMENT for a bad description or codec spec or while another
  // tensor is incomplete, RESOURCE_EXHAUSTED above max_tensor_bytes. `buffers`, if not null, are for its frame.
  absl::Status Begin(TensorDesc tensor, std::string_view codec, OutputBuffers* buffers = nullptr);
  // The next bytes of the tensor, copied. INVALID_ARGUMENT when there are more than its shape says.
  absl::Status Append(ByteSpan bytes);
  // The same without a copy: takes bytes from the front of `bytes`, at most to the end of the block, and keeps their
  // owner until the block is encoded. A block that comes in several pieces is gathered by the worker, if the codec
  // needs it in one.
  absl::Status AppendPart(Slice& bytes);
  // Whether the current tensor still waits for bytes.
  bool in_tensor() const { return task_ != nullptr; }
  // Whether the bytes that came last have not made a block whole.
  bool in_block() const { return filled_ > 0; }
  // Bytes of values that have come, of all tensors.
  uint64_t values_taken() const { return taken_; }
  // Of the tensor that Append feeds; empty when there is none.
  std::optional<Footprint> footprint() const;

  // Starts and ends a tensor whose bytes the workers read from `source`, which must live until the tensor's report.
  // Blocks while `window` or more blocks are in flight.
  absl::Status Compress(TensorDesc tensor, std::string_view codec, const ByteSource& source, size_t window);

  // The end of input. INVALID_ARGUMENT when a tensor is incomplete.
  absl::Status Finish() const;

  size_t blocks_in_flight() const { return pipeline_.in_flight(); }
  // Of these, those that have not begun to come out.
  size_t blocks_to_deliver() const { return pipeline_.to_deliver(); }
  // Bytes of the values of those blocks, and of what is kept of their tokens until they come out.
  uint64_t bytes_in_flight() const { return bytes_in_flight_; }
  // Calls `done` on a thread that works when everything submitted so far is out, or skipped after an error or Cancel.
  void Flush(absl::AnyInvocable<void()> done) {
    pipeline_.Submit([] {}, std::move(done));
  }
  // From here on blocks that come, and take no longer than the way to another thread, are held for WorkOnHeld, or none.
  void set_holds(bool holds) { holds_ = holds; }
  void WorkOnHeld() { pipeline_.WorkOnHeld(); }
  // Blocks until fewer than `limit` blocks are in flight. Not from the output's calls.
  void WaitBelow(size_t limit) { pipeline_.WaitBelow(limit); }
  // Makes the remaining work end at once, without further output. From any thread.
  void Cancel() { cancelled_ = true; }

 private:
  absl::StatusOr<std::shared_ptr<EncodeTask>> NewTask(TensorDesc tensor, std::string_view codec) const;
  void Take(Slice piece, size_t capacity);
  void SubmitBlock(const std::shared_ptr<EncodeTask>& task, uint64_t index, BlockInput input);
  void SubmitEmpty(const std::shared_ptr<EncodeTask>& task);
  void EndTensor();

  Limits limits_;
  CompressOutput& output_;
  std::atomic<bool> cancelled_ = false;
  std::atomic<uint64_t> bytes_in_flight_ = 0;
  bool failed_ = false;               // of the output's side: set and read by deliveries only
  std::shared_ptr<EncodeTask> task_;  // the tensor that Append feeds
  BlockInput pending_;                // its next block, or all of it where the chain must see the whole
  size_t filled_ = 0;
  uint64_t received_ = 0;
  uint64_t taken_ = 0;  // of all tensors
  bool holds_ = false;
  OrderedPipeline pipeline_;  // last: its destructor waits for jobs that use the members above
};

}  // namespace kvcompress
