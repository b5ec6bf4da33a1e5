#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
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
// is encoded or decoded, what goes out is what the codec wrote. `wake` is called, from threads that work on blocks and
// without locks, when either may have changed. The session ends when done() says so. Its status is that of the first
// fault in the order of the stream, whatever the threads' timing; the responses that precede the fault come out first.
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
          std::function<void()> wake)
      : options_(std::move(options)),
        wake_(std::move(wake)),
        regions_(options_.regions),
        work_(observer, [this](Change change) { OnProgress(change); }),
        outlet_(work_.outbox(), regions_),
        feeder_(options_, std::move(ticket), work_, stream_, regions_, outlet_),
        stream_(pool, options_.limits, work_, feeder_.client()) {}
  // Waits for the blocks in flight; short when done().
  ~Session() { Cancel(); }

  void Push(Request request) {
    if (request.payload_case() == Direction::kInput) {
      auto owner = std::make_shared<const std::string>(std::move(Direction::Input(request)));
      const ByteSpan payload = AsBytes(*owner);
      return Push(std::vector<Slice>{{payload, std::move(owner)}});
    }
    if (request.payload_case() == Direction::kSharedInput) {
      const v1::SharedMemoryRange& range = Direction::SharedInput(request);
      if (range.levels_size() > 0) {
        absl::StatusOr<StridedInput> strided = regions_.Strided(range);
        if (!strided.ok()) return Fail(strided.status());
        return Queue({.strided = *std::move(strided), .is_shared = true});
      }
      absl::StatusOr<Slice> bytes = regions_.Input(range);
      if (!bytes.ok()) return Fail(bytes.status());
      return Queue({.bytes = {*std::move(bytes)}, .is_shared = true});
    }
    if (request.payload_case() == Direction::kOutputBuffer) {
      const absl::Status added = regions_.AddBuffer(Direction::OutputBuffer(request));
      return added.ok() ? void() : Fail(added);
    }
    if (const absl::Status fits = CheckHeaders(request); !fits.ok()) return Fail(fits);
    const size_t held = request.SpaceUsedLong();  // several times as much as on the wire
    Queue({.message = std::move(request), .header_bytes = held, .is_header = true});
  }
  // A message that carries these bytes.
  void Push(std::vector<Slice> payload) { Queue({.bytes = std::move(payload)}); }
  // The same, and the caller calls WorkOnHeld next, once it has asked for more input: what it has in its CPU's cache
  // may be encoded or decoded there, if the codec is fast.
  void PushAndHold(std::vector<Slice> payload) { Queue({.bytes = std::move(payload)}, true); }
  void WorkOnHeld() { stream_.WorkOnHeld(); }
  // No more messages.
  void HalfClose() {
    {
      absl::MutexLock lock(&mutex_);
      half_closed_ = true;
    }
    Feed();
  }
  // What came is not a message.
  void Fail(const absl::Status& status) {
    {
      absl::MutexLock lock(&mutex_);
      if (input_status_.ok()) input_status_ = status;
    }
    Feed();
  }
  // The client is gone: ends the work within a block and drops what was not yet taken.
  void Cancel() {
    {
      absl::MutexLock lock(&mutex_);
      cancelled_ = true;
      outlet_.Close();
    }
    stream_.Cancel();
    Feed();
  }

  // Ends the stream with this status, whatever else there is to come. From any thread.
  void End(const absl::Status& status) {
    {
      absl::MutexLock lock(&mutex_);
      output_status_ = status;
      outlet_.Close();
    }
    stream_.Cancel();
    Fail(status);
  }

  bool wants_input() const {
    const bool wanted = TakesInput();
    refused_input_ = !wanted;
    return wanted;
  }
  // The next response; false when there is none now. The one before it counts as written.
  bool Pop(Outgoing<Response>& outgoing) {
    outgoing = {};
    bool half_closed = false;
    {
      absl::MutexLock lock(&mutex_);
      half_closed = half_closed_;
    }
    const absl::StatusOr<bool> popped = outlet_.Next(half_closed, outgoing);
    if (!popped.ok()) End(popped.status());
    Feed();
    // What was fed may have released input at once.
    return popped.value_or(false) || outlet_.NextRelease(outgoing);
  }
  // Whether another one is there already: the next Pop gives it, unless the stream fails before.
  bool has_next() const { return outlet_.has_next(); }

  // What the window is compared with. A block that is coming out counts no more: nobody would wake for it later.
  uint64_t held_bytes() const {
    return work_.outbox().held_bytes() + stream_.bytes_in_flight() +
           kItemOverheadBytes * uint64_t{stream_.blocks_to_deliver()};
  }

  // Whether threads have work for this session, or will have: it does not wait for its client alone.
  bool is_working() const { return stream_.blocks_in_flight() > 0; }
  // Whether output waits for the client to give a buffer.
  bool waits_for_buffer() const { return outlet_.waits_for_buffer(); }

  // Whether all has come out and no thread works for this session any more.
  bool done() const {
    absl::MutexLock lock(&mutex_);
    return flushed_ && (outlet_.is_closed() || work_.outbox().empty());
  }
  // Once done.
  absl::Status status() const {
    absl::MutexLock lock(&mutex_);
    if (cancelled_) return absl::CancelledError("the client has cancelled");
    return output_status_.ok() ? status_ : output_status_;
  }
  // Once done, or when Pop has given the stream's report: gives back what the stream was admitted with.
  void Settle() { feeder_.Settle(); }
  StreamTotals totals() const { return work_.totals(); }

 private:
  using Clock = std::chrono::steady_clock;

  // Of a message of headers.
  absl::Status CheckHeaders(const Request& request) const {
    // Far above any that is valid; many may wait.
    constexpr size_t kMaxHeaderMessageBytes = (size_t{16} << 10) + kMaxProfileBytes;
    if (request.ByteSizeLong() > kMaxHeaderMessageBytes) {
      return absl::InvalidArgumentError(
          absl::StrFormat("a header above the limit of %d bytes", kMaxHeaderMessageBytes));
    }
    if (!request.has_batch()) {
      return Direction::ToBuffers(request.header()) ? regions_.CheckEnabled() : absl::OkStatus();
    }
    const auto& headers = request.batch().headers();
    if (headers.empty() || headers.size() > kMaxBatchTensors) {
      return absl::InvalidArgumentError(
          absl::StrFormat("a batch of %d tensors, not of 1 to %d", headers.size(), kMaxBatchTensors));
    }
    const bool to_buffers = Direction::ToBuffers(headers[0]);
    for (const auto& header : headers) {
      if (Direction::ToBuffers(header) == to_buffers) continue;
      return absl::InvalidArgumentError("a batch whose output goes to buffers in part");
    }
    return to_buffers ? regions_.CheckEnabled() : absl::OkStatus();
  }

  bool WindowIsOpen() const { return held_bytes() < options_.window_bytes; }

  void Queue(Input<Request> input, bool holds = false) {
    {
      absl::MutexLock lock(&mutex_);
      if (!start_) start_ = Clock::now();
      if (InputIsOver()) return;  // a message that was on its way when the stream failed
      header_bytes_ += input.header_bytes;
      inputs_.push_back(std::move(input));
    }
    Feed(holds);
  }

  // While output goes to buffers, messages are read even when the window is shut, because one of them may give the next
  // buffer. Messages with bytes are not, because those would have to be held. After a fault the output that precedes it
  // still comes out, and until then only messages that give buffers are used.
  bool TakesInput() const {
    constexpr size_t kMaxInputs = 1024;
    constexpr size_t kMaxInputHeaderBytes = size_t{1} << 20;
    absl::MutexLock lock(&mutex_);
    if (half_closed_ || outlet_.is_closed()) return false;
    if (InputIsOver()) return outlet_.waits_for_buffer();
    if (inputs_.empty()) return WindowIsOpen() || outlet_.uses_buffers();
    const Input<Request>& last = inputs_.back();
    return (last.is_shared || last.is_header) && inputs_.size() < kMaxInputs && header_bytes_ < kMaxInputHeaderBytes &&
           outlet_.uses_buffers();
  }

  bool InputIsOver() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return cancelled_ || !input_status_.ok() || (half_closed_ && inputs_.empty()) || !work_.error().ok();
  }

  // Gives the stream as much of the input as the window takes. Whoever brings input, or takes output, calls; `holds`:
  // and then WorkOnHeld.
  void Feed(bool holds = false) {
    feeding_.Run([this, holds] {
      stream_.set_holds(holds);
      while (FeedPart()) {
      }
    });
  }

  // Returns whether there may be more to feed.
  bool FeedPart() {
    Input<Request>* input = nullptr;
    bool open = true;
    size_t waiting_bytes = 0;
    {
      absl::MutexLock lock(&mutex_);
      if (flushing_) return false;
      if (InputIsOver()) {
        Flush();
        return false;
      }
      if (inputs_.empty()) {
        feeder_.ReleaseIfIdle();
        return false;
      }
      input = &inputs_.front();  // stays where it is while others are added after it
      open = WindowIsOpen();
      if (!open) waiting_bytes = header_bytes_;
    }
    absl::Status status = feeder_.HoldWaiting(waiting_bytes);
    if (status.ok()) {
      if (!open) return false;
      // Up to the end of a block: before it nothing changes of what the window looks at.
      do {
        status = feeder_.TakePart(*input);
      } while (status.ok() && !input->taken() && stream_.in_block());
    }
    absl::MutexLock lock(&mutex_);
    if (input_status_.ok()) input_status_ = status;
    if (input->taken()) {
      header_bytes_ -= input->header_bytes;
      inputs_.pop_front();
    }
    return true;
  }

  // The input is over: what is in flight comes out, and then the end.
  void Flush() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    flushing_ = true;
    inputs_.clear();
    header_bytes_ = 0;
    if (input_status_.ok() && half_closed_) input_status_ = stream_.Finish();
    stream_.Flush([this] { OnFlushed(); });
  }

  void OnFlushed() {
    {
      absl::MutexLock lock(&mutex_);
      const absl::Status block_error = work_.error();
      status_ = block_error.ok() ? input_status_ : block_error;
      if (status_.ok() && !outlet_.is_closed()) {
        const Clock::time_point now = Clock::now();
        work_.SendStreamReport(std::chrono::duration<double>(now - start_.value_or(now)).count());
      }
      flushed_ = true;
    }
    wake_();
  }

  // A block, a report or an error has come out of the stream.
  void OnProgress(Change change) {
    if (!work_.error().ok()) stream_.Cancel();
    Feed();
    if (WorthWaking(change)) wake_();
  }

  // A response costs about the same whatever its size, so a few blocks go out together, and more of them, tensors'
  // ends included, of a batch. Nothing waits when no other block will come to wake for it.
  bool WorthWaking(Change change) const {
    constexpr uint64_t kWorthAResponse = uint64_t{256} << 10;
    const bool joins = outlet_.joins();
    return (change == Change::kEnd && !joins) || stream_.blocks_in_flight() <= 1 ||
           work_.outbox().waiting_bytes() >= (joins ? kMaxMessageBytes : kWorthAResponse) ||
           (refused_input_ && TakesInput());
  }

  const SessionOptions options_;
  const std::function<void()> wake_;
  mutable std::atomic<bool> refused_input_ = false;  // the last answer of wants_input was no

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

using CompressSession = Session<CompressStreamWork>;
using DecompressSession = Session<DecompressStreamWork>;

}  // namespace kvcompress
