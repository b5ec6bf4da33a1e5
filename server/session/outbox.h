#pragma once

#include <algorithm>
#include <deque>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "core/base/slice.h"

namespace kvcompress {

// Most bytes of a tensor or frame in one response.
inline constexpr size_t kMaxMessageBytes = size_t{1} << 20;
// Roughly what a response or a block costs in memory besides its bytes, so that many small ones are bounded, too.
inline constexpr uint64_t kItemOverheadBytes = 4096;

// What goes to the client: `response`, whose payload are the `bytes` if there are any.
template <typename Response>
struct Outgoing {
  Response response = {};
  std::vector<Slice> bytes = {};
};

// The responses of a stream on their way to the client, in order. Thread-safe.
template <typename Response>
class Outbox {
 public:
  void Add(Response response) {
    absl::MutexLock lock(&mutex_);
    Push({.outgoing = {.response = std::move(response)}});
  }

  // Bytes that continue those added before: they share a message with what still waits, up to kMaxMessageBytes.
  void AddBytes(const Slice& whole) {
    absl::MutexLock lock(&mutex_);
    for (size_t taken = 0; taken < whole.bytes.size();) {
      if (items_.empty() || items_.back().bytes == 0 || items_.back().bytes == kMaxMessageBytes) Push({});
      Item& tail = items_.back();
      const size_t take = std::min(whole.bytes.size() - taken, kMaxMessageBytes - tail.bytes);
      tail.outgoing.bytes.push_back(whole.Sub(taken, take));
      tail.bytes += take;
      tail.cost += take;
      held_bytes_ += take;
      taken += take;
    }
  }

  // Moves the next response to `outgoing`; false when there is none. The one before it counts as written, unless it
  // goes out `together` with the next.
  bool Pop(Outgoing<Response>& outgoing, bool together = false) {
    absl::MutexLock lock(&mutex_);
    if (!together) held_bytes_ -= std::exchange(writing_cost_, 0);
    if (items_.empty()) return false;
    writing_cost_ += items_.front().cost;
    outgoing = std::move(items_.front().outgoing);
    items_.pop_front();
    return true;
  }

  void Clear() {
    absl::MutexLock lock(&mutex_);
    items_.clear();
    held_bytes_ = writing_cost_;
  }

  // Of the responses that wait or are being written.
  uint64_t held_bytes() const {
    absl::MutexLock lock(&mutex_);
    return held_bytes_;
  }

  // Of those that wait.
  uint64_t waiting_bytes() const {
    absl::MutexLock lock(&mutex_);
    return held_bytes_ - writing_cost_;
  }

  bool empty() const { return held_bytes() == 0; }
  // Whether Pop would give one.
  bool has_next() const {
    absl::MutexLock lock(&mutex_);
    return !items_.empty();
  }
  // Bytes that the next one carries.
  size_t next_bytes() const {
    absl::MutexLock lock(&mutex_);
    return items_.empty() ? 0 : items_.front().bytes;
  }

 private:
  struct Item {
    Outgoing<Response> outgoing = {};
    size_t bytes = 0;  // of outgoing.bytes
    uint64_t cost = kItemOverheadBytes;
  };

  void Push(Item item) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    held_bytes_ += item.cost;
    items_.push_back(std::move(item));
  }

  mutable absl::Mutex mutex_;
  std::deque<Item> items_ ABSL_GUARDED_BY(mutex_);
  uint64_t held_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t writing_cost_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvcompress
