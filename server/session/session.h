#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "core/compress_stream.h"
#include "core/decompress_stream.h"
#include "proto/wire/direction.h"
#include "server/session/admission.h"
#include "server/session/compress_headers.h"
#include "server/session/room_output.h"
#include "server/session/shared_ranges.h"
#include "server/session/sinks.h"

namespace kvcompress {

struct SessionOptions {
  Limits limits;
  std::string default_codec = "int4(group=64)";
  // How much a stream holds, in bytes of tensors, before it stops taking input: blocks in the pool, and responses that
  // the client has not taken. Whole tensors that a codec must see first come on top.
  uint64_t window_bytes = 0;
  const RegionTable* regions = nullptr;  // null: no shared memory
};

// A window for a pool of this many threads: two blocks of F16 for each, one in work and one waiting, and eight (2 MiB)
// to cover what is on its way in and out meanwhile.
constexpr uint64_t DefaultWindowBytes(size_t threads) {
  return (8 + 2 * uint64_t{threads}) * kDefaultBlockElements * 2;
}

// What a session does with the messages of a direction: the core's stream and what goes out of it.
struct Compressing {
  using Direction = CompressDirection;
  using Stream = CompressStream;
  using Sink = CompressResponses;

  absl::Status Begin(Stream& stream, const v1::CompressHeader& header, const SessionOptions& options,
                     OutputBuffers* buffers);
  static absl::Status AppendPart(Stream& stream, Slice& bytes) { return stream.AppendPart(bytes); }

  CompressHeaders headers;
};

struct Decompressing {
  using Direction = DecompressDirection;
  using Stream = DecompressStream;
  using Sink = DecompressResponses;

  static absl::Status Begin(Stream& stream, const v1::DecompressHeader& header, const SessionOptions& options,
                            OutputBuffers* buffers);
  static absl::Status AppendPart(Stream& stream, Slice& bytes) { return stream.AppendPart(bytes.bytes); }
};

// One stream, from its first message to its status, without a transport. Messages go in by Push, one at a time and only
// while wants_input(); responses come out by Pop, in order. Payloads are slices on both ways: what came is held until
// it is encoded or decoded, what goes out is what the codec wrote. `wake` is called, from pool threads and without
// locks, when either may have changed. The session ends when done() says so: its status is that of the first fault in
// the order of the stream, whatever the threads' timing; responses in front of the fault come out before it.
//
// Push, HalfClose and Fail come from one thread at a time, and so does Pop; the others from any.
template <typename Work>
class Session {
 public:
  using Direction = typename Work::Direction;
  using Request = typename Direction::Request;
  using Response = typename Direction::Response;

  Session(ThreadPool& pool, SessionOptions options, Admission::Ticket ticket, SessionObserver& observer,
          std::function<void()> wake);
  // Waits for the blocks in flight; short when done().
  ~Session();

  void Push(Request request);
  // A message that carries these bytes.
  void Push(std::vector<Slice> payload);
  // No more messages.
  void HalfClose();
  // What came is not a message.
  void Fail(const absl::Status& status);
  // The client is gone: ends the work within a block and drops what was not yet taken.
  void Cancel();

  bool wants_input() const {
    const bool wanted = TakesInput();
    refused_input_ = !wanted;
    return wanted;
  }
  // The next response; false when there is none now. The one before it counts as written.
  bool Pop(Outgoing<Response>& outgoing);
  // Whether another one is there already: the next Pop gives it, unless the stream fails before.
  bool has_next() const;

  // What the window is compared with.
  uint64_t held_bytes() const;

  // Whether all has come out and no thread works for this session any more.
  bool done() const;
  // Once done.
  absl::Status status() const;
  // Once done, or with the stream's report in hand: gives back what the stream was admitted with.
  void Settle() { ticket_.Settle(); }
  StreamTotals totals() const { return sink_.totals(); }

 private:
  using Clock = std::chrono::steady_clock;

  // A message that is being taken: a header, or bytes.
  struct Input {
    Request header;
    std::vector<Slice> bytes;
    size_t next = 0;  // of `bytes`
    size_t header_bytes = 0;
    bool is_header = false;
    bool is_shared = false;

    bool taken() const { return !is_header && next == bytes.size(); }
  };

  void OnProgress(Change change);
  bool WorthWaking(Change change) const;
  void Queue(Input input);
  void Feed();
  absl::Status FeedPart(Input& input);
  absl::Status TakeHeader(Input& input);
  bool PopNext(Outgoing<Response>& outgoing);
  bool PopReleased(Outgoing<Response>& outgoing);
  absl::Status OutputStatus() const;
  bool FailOutput(const absl::Status& status);
  absl::Status Reserve(const Footprint& footprint);
  void ReleaseIfIdle();
  void OnFlushed();
  bool HasRoom() const { return held_bytes() < options_.window_bytes; }
  bool TakesInput() const;
  bool HalfClosed() const {
    absl::MutexLock lock(&mutex_);
    return half_closed_;
  }
  bool InputIsOver() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const SessionOptions options_;
  const std::function<void()> wake_;

  mutable absl::Mutex mutex_;
  std::deque<Input> inputs_ ABSL_GUARDED_BY(mutex_);  // more than one only while the output waits for room
  size_t header_bytes_ ABSL_GUARDED_BY(mutex_) = 0;   // of `inputs_`
  bool feeding_ ABSL_GUARDED_BY(mutex_) = false;      // a thread is in Feed, and owns its members below
  bool half_closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool flushing_ ABSL_GUARDED_BY(mutex_) = false;  // the input is over, what is in flight comes out
  bool flushed_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status input_status_ ABSL_GUARDED_BY(mutex_);
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  absl::Status output_status_ ABSL_GUARDED_BY(mutex_);  // why what was made cannot go out
  std::deque<bool> to_room_ ABSL_GUARDED_BY(mutex_);    // of the tensors that were begun and whose reports are not out
  std::atomic<bool> waits_for_room_ = false;
  mutable std::atomic<bool> refused_input_ = false;  // the last time that wants_input was asked
  std::optional<Clock::time_point> start_ ABSL_GUARDED_BY(mutex_);

  SharedRanges ranges_;

  // Of the thread that pops.
  RoomOutput<Direction> rooms_{ranges_};
  uint64_t released_reported_ = 0;  // as input_released

  // Of the thread that feeds.
  Work work_;
  uint64_t begun_ = 0;           // tensors
  bool reserved_ = true;         // whether the memory of the current tensor is
  uint64_t streamed_bytes_ = 0;  // of tensors since the stream was last idle
  struct WholeTensor {
    uint64_t number;
    uint64_t bytes;
  };
  std::deque<WholeTensor> whole_;  // held until their reports are out
  Admission::Ticket ticket_;

  typename Work::Sink sink_;
  typename Work::Stream stream_;  // last: its destructor waits for calls into the members above
};

extern template class Session<Compressing>;
extern template class Session<Decompressing>;

using CompressSession = Session<Compressing>;
using DecompressSession = Session<Decompressing>;

}  // namespace kvcompress
