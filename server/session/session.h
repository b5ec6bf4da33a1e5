#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "core/base/serializer.h"
#include "server/session/admission.h"
#include "server/session/feeder.h"
#include "server/session/options.h"
#include "server/session/outlet.h"
#include "server/session/stream_regions.h"
#include "server/session/stream_work.h"

namespace kvcompress {

// One stream, from its first message to its status, without a transport. Messages go in by Push, one at a time and only
// while wants_input(); responses come out by Pop, in order. Payloads are slices both ways: what came is held until it
// is encoded or decoded, what goes out is what the codec wrote. `wake` is called, from pool threads and without locks,
// when either may have changed. The session ends when done() says so. Its status is that of the first fault in the
// order of the stream, whatever the threads' timing; the responses that precede the fault come out first.
//
// Push, HalfClose and Fail come from one thread at a time, and so does Pop; the others from any.
//
// Inside: a Feeder takes the input as far as the window is open, an Outlet gives the responses.
template <typename Work>
class Session {
 public:
  using Direction = typename Work::Direction;
  using Request = typename Direction::Request;
  using Response = typename Direction::Response;

  Session(ThreadPool& pool, SessionOptions options, Admission::Ticket ticket, SessionObserver& observer,
          std::function<void()> wake);
  // Waits for the blocks in flight; short when done().
  ~Session() { Cancel(); }

  void Push(Request request);
  // A message that carries these bytes.
  void Push(std::vector<Slice> payload) { Queue({.bytes = std::move(payload)}); }
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
  bool has_next() const { return outlet_.has_next(); }

  // What the window is compared with.
  uint64_t held_bytes() const;

  // Whether all has come out and no thread works for this session any more.
  bool done() const;
  // Once done.
  absl::Status status() const;
  // Once done, or with the stream's report in hand: gives back what the stream was admitted with.
  void Settle() { feeder_.Settle(); }
  StreamTotals totals() const { return work_.totals(); }

 private:
  using Clock = std::chrono::steady_clock;

  bool TakesInput() const;
  bool WindowIsOpen() const { return held_bytes() < options_.window_bytes; }
  bool InputIsOver() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Queue(Input<Request> input);
  void Feed();
  bool FeedPart();
  void Flush() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnFlushed();
  void OnProgress(Change change);
  bool WorthWaking(Change change) const;
  void FailOutput(const absl::Status& status);

  const SessionOptions options_;
  const std::function<void()> wake_;
  mutable std::atomic<bool> refused_input_ = false;  // the last time that wants_input was asked

  mutable absl::Mutex mutex_;
  // More than one only while the output waits for a buffer. The feeding thread alone removes any.
  std::deque<Input<Request>> inputs_ ABSL_GUARDED_BY(mutex_);
  size_t header_bytes_ ABSL_GUARDED_BY(mutex_) = 0;  // of `inputs_`
  bool half_closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool flushing_ ABSL_GUARDED_BY(mutex_) = false;  // the input is over, what is in flight comes out
  bool flushed_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status input_status_ ABSL_GUARDED_BY(mutex_);
  absl::Status output_status_ ABSL_GUARDED_BY(mutex_);  // why what was made cannot go out
  absl::Status status_ ABSL_GUARDED_BY(mutex_);         // of all, once it is flushed
  std::optional<Clock::time_point> start_ ABSL_GUARDED_BY(mutex_);

  Serializer feeding_;
  StreamRegions regions_;
  Work work_;
  Outlet<Direction> outlet_;
  Feeder<Work> feeder_;
  typename Work::Stream stream_;  // last: its destructor waits for calls into the members above
};

extern template class Session<CompressStreamWork>;
extern template class Session<DecompressStreamWork>;

using CompressSession = Session<CompressStreamWork>;
using DecompressSession = Session<DecompressStreamWork>;

}  // namespace kvcompress
