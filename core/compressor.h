#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "kvcompress/base/buffer.h"
#include "kvcompress/base/byte_source.h"
#include "kvcompress/base/ordered_pipeline.h"
#include "kvcompress/base/slice.h"
#include "kvcompress/base/tensor.h"
#include "kvcompress/codec/chain.h"
#include "kvcompress/frame/frame.h"
#include "kvcompress/simd/error_sums.h"

// The facade of the core: streams of tensors to frames and back. Blocks are encoded and decoded on a pool; everything
// that comes out comes in order. What arrives may be pushed in pieces (a network stream) or read by the workers from a
// source (a file); both give the same bytes.
namespace kvcompress {

struct Limits {
  uint64_t max_tensor_bytes = uint64_t{64} << 30;
};
// For tensors of any size that can be described.
inline constexpr Limits kNoLimits = {.max_tensor_bytes = kMaxTensorElements * 4};

struct TensorReport {
  TensorDesc tensor;
  std::string codec;       // canonical spec
  std::string codec_name;  // of the tensor codec alone
  uint64_t elements = 0;
  uint64_t tensor_bytes = 0;
  uint64_t frame_bytes = 0;
  ErrorSums sums;            // of compression only
  double codec_seconds = 0;  // time of pool threads
  // Of values and frame, between buffers: blocks that came in pieces, for codecs that need them in one. What a codec
  // reads and writes is not a copy.
  uint64_t copied_bytes = 0;
};

// What the tensor in progress takes.
struct Footprint {
  uint64_t tensor_bytes = 0;
  uint64_t block_bytes = 0;  // of the values of a block
  bool whole = false;        // the stream holds all of it until its last byte has come
};

// Receives what a stream makes: in order, one call at a time, on pool threads. After OnError nothing follows.
class CompressOutput {
 public:
  virtual ~CompressOutput() = default;
  virtual void OnFrame(Slice bytes) = 0;                  // the next bytes of the current frame
  virtual void OnTensor(const TensorReport& report) = 0;  // ends a frame
  virtual void OnError(const absl::Status& status) = 0;
};

class DecompressOutput {
 public:
  virtual ~DecompressOutput() = default;
  virtual void OnHeader(const TensorDesc& tensor, uint64_t elements) = 0;
  virtual void OnData(Slice values) = 0;
  virtual void OnTensor(const TensorReport& report) = 0;
  virtual void OnError(const absl::Status& status) = 0;
};

// Memory that `owner` keeps alive, to be written once.
struct Place {
  MutableByteSpan bytes;
  std::shared_ptr<const void> owner;
};

// The caller's memory for the output of a tensor, where it is known ahead how much goes where: blocks are then written
// there by whichever thread makes them. It may be written by someone else meanwhile.
class OutputPlaces {
 public:
  virtual ~OutputPlaces() = default;
  // Where the next `size` bytes of output are to be; nowhere (an empty place) if they cannot be in one piece. Asked on
  // the caller's thread, in the order of the stream, for all of a tensor's output or for none; `last` ends it. What it
  // gives is among the bytes that come out, at its turn.
  virtual Place Take(uint64_t size, bool last) = 0;
};

struct EncodeTask;  // of one tensor
struct DecodeTask;

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
  CompressStream(ThreadPool& pool, const Limits& limits, CompressOutput& output)
      : limits_(limits), output_(output), pipeline_(pool) {}
  // Waits for the blocks in flight; they are skipped, not finished.
  ~CompressStream() { Cancel(); }

  // Starts a tensor whose bytes Append brings. INVALID_ARGUMENT for a bad description or codec spec or while another
  // tensor is incomplete, RESOURCE_EXHAUSTED above max_tensor_bytes. `places`, if not null, for its frame.
  absl::Status Begin(TensorDesc tensor, std::string_view codec, OutputPlaces* places = nullptr);
  // The next bytes of the tensor, copied. INVALID_ARGUMENT when there are more than its shape says.
  absl::Status Append(ByteSpan bytes);
  // The same, but takes from the front of `bytes` no more than completes a block, and keeps their owner until the block
  // is encoded instead of copying them. A block that comes in several pieces is gathered by the worker, if the codec
  // needs it in one.
  absl::Status AppendPart(Slice& bytes);
  // Whether the current tensor still waits for bytes.
  bool in_tensor() const { return task_ != nullptr; }
  // Of the tensor that Append feeds; empty when there is none.
  std::optional<Footprint> footprint() const;

  // Starts and ends a tensor whose bytes the workers read from `source`, which must live until the tensor's report.
  // Blocks while `window` or more blocks are in flight.
  absl::Status Compress(TensorDesc tensor, std::string_view codec, const ByteSource& source, size_t window);

  // The end of input. INVALID_ARGUMENT when a tensor is incomplete.
  absl::Status Finish() const;

  size_t blocks_in_flight() const { return pipeline_.in_flight(); }
  // Bytes of the values of those blocks.
  uint64_t bytes_in_flight() const { return bytes_in_flight_; }
  // Calls `done` on a pool thread when everything submitted so far is out, or skipped after an error or Cancel.
  void Flush(absl::AnyInvocable<void()> done) {
    pipeline_.Submit([] {}, std::move(done));
  }
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
  OrderedPipeline pipeline_;  // last: its destructor waits for jobs that use the members above
};

// Decompresses frames one after another; the mirror of CompressStream.
class DecompressStream {
 public:
  DecompressStream(ThreadPool& pool, const Limits& limits, DecompressOutput& output)
      : limits_(limits), output_(output), pipeline_(pool) {}
  ~DecompressStream() { Cancel(); }

  // Starts a frame; `name` goes into the report. INVALID_ARGUMENT while another frame is incomplete. `places`, if not
  // null, for its values.
  absl::Status Begin(std::string_view name, OutputPlaces* places = nullptr);
  // The next bytes of the frame. DATA_LOSS for what cannot be a frame, INVALID_ARGUMENT for bytes behind the end mark.
  absl::Status Append(ByteSpan bytes);
  // The same, but takes from the front of `bytes` no more than completes a part of the frame: its header, a block, its
  // end. What it takes is copied once, before any of it is looked at.
  absl::Status AppendPart(ByteSpan& bytes);
  bool in_tensor() const { return reader_ != nullptr; }
  // Of the current frame; empty until its header has come.
  std::optional<Footprint> footprint() const;

  // Starts and ends a frame whose bytes are read from `source`: exactly one frame. Blocks while `window` or more blocks
  // are in flight, so that small payloads that decode to large blocks cannot pile up.
  absl::Status Decompress(std::string_view name, const ByteSource& source, size_t window);

  // The end of input. DATA_LOSS when a frame is incomplete.
  absl::Status Finish() const;

  size_t blocks_in_flight() const { return pipeline_.in_flight(); }
  uint64_t bytes_in_flight() const { return bytes_in_flight_; }
  void Flush(absl::AnyInvocable<void()> done) {
    pipeline_.Submit([] {}, std::move(done));
  }
  void WaitBelow(size_t limit) { pipeline_.WaitBelow(limit); }
  void Cancel() { cancelled_ = true; }

 private:
  absl::Status StartTensor();
  void SubmitBlock(FrameReader::Block block);
  absl::Status Named(const absl::Status& status) const;
  absl::Status BytesBehindEnd(uint64_t count) const;

  Limits limits_;
  DecompressOutput& output_;
  std::atomic<bool> cancelled_ = false;
  std::atomic<uint64_t> bytes_in_flight_ = 0;
  bool failed_ = false;
  std::string name_;
  OutputPlaces* places_ = nullptr;
  std::unique_ptr<FrameReader> reader_;
  std::shared_ptr<DecodeTask> task_;
  OrderedPipeline pipeline_;
};

// The exact size of the frame of a tensor for a codec whose streams have their bounds' sizes (intN, raw); an upper
// bound for every other.
absl::StatusOr<uint64_t> MaxFrameBytes(const TensorDesc& tensor, std::string_view codec);

}  // namespace kvcompress
