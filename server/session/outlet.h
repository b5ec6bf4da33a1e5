#pragma once

#include <atomic>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/status_macros.h"
#include "proto/wire/direction.h"
#include "proto/wire/error_reason.h"
#include "server/session/outbox.h"
#include "server/session/stream_regions.h"

namespace kvcompress {

// How the output of a tensor goes out.
struct OutputWay {
  bool to_buffers = false;
  bool in_batch = false;
  bool joined = false;  // another tensor of the batch follows
};

// Brings what is in a stream's outbox to its client. Output that the client wants in buffers is written there, and
// responses tell where it lies; everything else goes into responses. What the outbox has of a batch goes out together,
// as far as a message takes it. One thread at a time calls Next and has_next; the others are thread-safe.
template <typename Direction>
class Outlet {
 public:
  using Response = typename Direction::Response;

  Outlet(Outbox<Response>& outbox, StreamRegions& regions) : outbox_(outbox), regions_(regions) {}

  // The output of another tensor will follow.
  void BeginTensor(OutputWay way) {
    absl::MutexLock lock(&mutex_);
    ways_.push_back(way);
  }

  // Fills in the next response; false when there is none now. The one before it counts as written. `half_closed`: the
  // client gives no more buffers. FAILED_PRECONDITION when what was made cannot go out.
  absl::StatusOr<bool> Next(bool half_closed, Outgoing<Response>& outgoing) {
    if (NextRelease(outgoing)) return true;
    while (!closed_) {
      KVC_RETURN_IF_ERROR(regions_.Check());
      while (!filling_.empty()) {
        waits_for_buffer_ = !regions_.has_buffer();
        if (waits_for_buffer_ && joined_parts_ > 0) return Tell(outgoing);
        if (waits_for_buffer_ && half_closed) {
          return WithReason(
              absl::FailedPreconditionError("the stream was half-closed, but its output needs another buffer"),
              v1::OUTPUT_BUFFERS_TOO_SMALL);
        }
        if (waits_for_buffer_) return false;
        if (FillBuffer()) return Tell(outgoing);
      }
      if (passing_) {
        // A tensor's report follows all of its output.
        if (passing_->response.has_tensor() && filled_.byte_size() > 0) return Tell(outgoing);
        outgoing = *std::exchange(passing_, std::nullopt);
        return true;
      }
      if (joined_parts_ > 0 && JoinedIsDue()) return Tell(outgoing);
      if (!TakeFromOutbox()) return joined_parts_ > 0 && Tell(outgoing);
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
    return (ways_.empty() || !ways_.front().to_buffers) && outbox_.has_next();
  }

  // Whether output waits for the client to give a buffer.
  bool waits_for_buffer() const { return waits_for_buffer_; }
  // Whether a buffer could be of use: output waits, or that of the last tensor goes to buffers.
  bool uses_buffers() const {
    absl::MutexLock lock(&mutex_);
    return waits_for_buffer_ || (!ways_.empty() && ways_.back().to_buffers);
  }
  // Whether what comes next goes out together with what follows it.
  bool joins() const {
    absl::MutexLock lock(&mutex_);
    return !ways_.empty() && ways_.front().joined;
  }

  // Ends it: Next gives no output any more, and what the outbox has or gets is dropped.
  void Close() {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
    outbox_.Clear();
  }
  bool is_closed() const { return closed_; }

 private:
  static constexpr size_t kMaxJoinedParts = 64;

  // Whether nothing can be added to what was joined. Not while a buffer is being filled.
  bool JoinedIsDue() const {
    return batch_ended_ || joined_parts_ >= kMaxJoinedParts || joined_bytes_ >= kMaxMessageBytes;
  }

  bool TakeFromOutbox() {
    Outgoing<Response> next;
    OutputWay way;
    {
      absl::MutexLock lock(&mutex_);
      if (closed_) return false;
      if (!ways_.empty()) way = ways_.front();
      const bool together = joined_parts_ > 0 && !way.to_buffers;
      if (together && joined_bytes_ + outbox_.next_bytes() > kMaxMessageBytes) return false;
      if (!outbox_.Pop(next, together)) return false;
      if (next.response.has_tensor()) ways_.pop_front();
    }
    if (next.response.has_tensor()) regions_.EndTensor(way.joined);
    if (way.to_buffers && !next.bytes.empty()) {
      filling_ = std::move(next.bytes);
    } else if (way.in_batch) {
      Join(std::move(next), way);
    } else {
      passing_ = std::move(next);
    }
    return true;
  }

  // Adds output of a batch, or what is said of a tensor, to what goes out together.
  void Join(Outgoing<Response> next, const OutputWay& way) {
    ++joined_parts_;
    for (Slice& slice : next.bytes) {
      joined_bytes_ += slice.bytes.size();
      joined_.bytes.push_back(std::move(slice));
    }
    if (!next.bytes.empty()) return;
    batch_ended_ = next.response.has_tensor() && !way.joined;
    Direction::Join(next.response, joined_.response);
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

  // Gives what was joined, and the part of a buffer that is filled.
  bool Tell(Outgoing<Response>& outgoing) {
    outgoing = std::exchange(joined_, {});
    if (filled_.byte_size() > 0) Direction::SharedOutput(outgoing.response) = std::exchange(filled_, {});
    joined_parts_ = 0;
    joined_bytes_ = 0;
    batch_ended_ = false;
    return true;
  }

  Outbox<Response>& outbox_;
  StreamRegions& regions_;

  // Next's own.
  std::vector<Slice> filling_;                 // output that goes to the next buffer
  v1::SharedMemoryRange filled_;               // the part of a buffer that is filled and not told of
  std::optional<Outgoing<Response>> passing_;  // a response that goes out as it is
  Outgoing<Response> joined_;                  // what goes out together, of a batch
  size_t joined_parts_ = 0;                    // how many of the outbox
  size_t joined_bytes_ = 0;                    // of joined_.bytes
  bool batch_ended_ = false;                   // with what was joined
  uint64_t released_ = 0;                      // bytes of input, as the client was told

  std::atomic<bool> waits_for_buffer_ = false;
  std::atomic<bool> closed_ = false;  // set under the mutex
  mutable absl::Mutex mutex_;
  std::deque<OutputWay> ways_ ABSL_GUARDED_BY(mutex_);  // of the tensors that were begun and are not reported
};

}  // namespace kvcompress
