#pragma once

#include <atomic>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/status_macros.h"
#include "server/session/outbox.h"
#include "server/session/stream_regions.h"

namespace kvcompress {

// Brings what is in a stream's outbox to its client. Output that the client wants in buffers is written there, and
// responses tell where it lies; everything else goes into responses. One thread at a time calls Next and has_next; the
// others are thread-safe.
template <typename Direction>
class Outlet {
 public:
  using Response = typename Direction::Response;

  Outlet(Outbox<Response>& outbox, StreamRegions& regions) : outbox_(outbox), regions_(regions) {}

  // The output of another tensor will follow.
  void BeginTensor(bool to_buffers) {
    absl::MutexLock lock(&mutex_);
    to_buffers_.push_back(to_buffers);
  }

  // Fills in the next response; false when there is none now. The one before it counts as written. `half_closed`: the
  // client gives no more buffers. FAILED_PRECONDITION when what was made cannot go out.
  absl::StatusOr<bool> Next(bool half_closed, Outgoing<Response>& outgoing) {
    if (NextRelease(outgoing)) return true;
    while (!closed_) {
      KVC_RETURN_IF_ERROR(regions_.Check());
      while (!filling_.empty()) {
        waits_for_buffer_ = !regions_.has_buffer();
        if (waits_for_buffer_ && half_closed) {
          return absl::FailedPreconditionError("the stream was half-closed, but its output needs another buffer");
        }
        if (waits_for_buffer_) return false;
        if (FillBuffer()) return Tell(outgoing);
      }
      // A tensor's report follows all of its output.
      if (passing_ && passing_->response.has_tensor() && filled_.byte_size() > 0) return Tell(outgoing);
      if (passing_) {
        outgoing = *std::exchange(passing_, std::nullopt);
        return true;
      }
      if (!TakeFromOutbox()) return false;
    }
    return false;
  }

  // How far input is released, if that is further than the client was told.
  bool NextRelease(Outgoing<Response>& outgoing) {
    const uint64_t released = regions_.released();
    if (std::exchange(released_, released) == released) return false;
    outgoing.response.set_input_released(released);
    return true;
  }

  // Whether Next would give a response at once. Bytes that go to a buffer give none before the buffer is full.
  bool has_next() const {
    if (closed_) return false;
    if (passing_ && filling_.empty()) return true;
    absl::MutexLock lock(&mutex_);
    return (to_buffers_.empty() || !to_buffers_.front()) && outbox_.has_next();
  }

  // Whether output waits for the client to give a buffer.
  bool waits_for_buffer() const { return waits_for_buffer_; }
  // Whether a buffer could be of use: output waits, or that of the last tensor goes to buffers.
  bool uses_buffers() const {
    absl::MutexLock lock(&mutex_);
    return waits_for_buffer_ || (!to_buffers_.empty() && to_buffers_.back());
  }

  // Ends it: Next gives no output any more, and what the outbox has or gets is dropped.
  void Close() {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
    outbox_.Clear();
  }
  bool is_closed() const { return closed_; }

 private:
  bool TakeFromOutbox() {
    Outgoing<Response> next;
    bool to_buffers = false;
    {
      absl::MutexLock lock(&mutex_);
      if (closed_ || !outbox_.Pop(next)) return false;
      to_buffers = !to_buffers_.empty() && to_buffers_.front();
      if (next.response.has_tensor()) to_buffers_.pop_front();
    }
    if (next.response.has_tensor()) regions_.EndTensor();
    if (to_buffers && !next.bytes.empty()) {
      filling_ = std::move(next.bytes);
    } else {
      passing_ = std::move(next);
    }
    return true;
  }

  // Fills the buffer whose turn it is, as far as there is output. True when it is full.
  bool FillBuffer() {
    const StreamRegions::Filled filled = regions_.Fill(filling_);
    if (filled_.byte_size() == 0) {
      filled_ = filled.range;
    } else {
      filled_.set_byte_size(filled_.byte_size() + filled.range.byte_size());
    }
    return filled.buffer_is_full;
  }

  bool Tell(Outgoing<Response>& outgoing) {
    Direction::SharedOutput(outgoing.response) = std::exchange(filled_, {});
    return true;
  }

  Outbox<Response>& outbox_;
  StreamRegions& regions_;

  // Next's own.
  std::vector<Slice> filling_;                 // output that goes to the next buffer
  v1::SharedMemoryRange filled_;               // the part of a buffer that is filled and not told of
  std::optional<Outgoing<Response>> passing_;  // a response that goes out as it is
  uint64_t released_ = 0;                      // bytes of input, as the client was told

  std::atomic<bool> waits_for_buffer_ = false;
  std::atomic<bool> closed_ = false;  // set under the mutex
  mutable absl::Mutex mutex_;
  std::deque<bool> to_buffers_ ABSL_GUARDED_BY(mutex_);  // of the tensors that were begun and are not reported
};

}  // namespace kvcompress
