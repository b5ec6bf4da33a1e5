#pragma once

#include <algorithm>
#include <deque>
#include <string>

#include "absl/synchronization/mutex.h"
#include "kvcompress/base/bytes.h"

namespace kvcompress {

// Most bytes of a tensor or frame in one response.
inline constexpr size_t kMaxMessageBytes = size_t{1} << 20;
// What a response or a block costs in memory besides its bytes, roughly: a bound on many small ones.
inline constexpr uint64_t kItemOverheadBytes = 4096;

// The responses of a stream on their way to the client, in order. Thread-safe.
template <typename Response>
class Outbox {
 public:
  // Gives the field of a response that carries bytes.
  using BytesField = std::string* (Response::*)();

  void Add(Response response) {
    absl::MutexLock lock(&mutex_);
    Push({.response = std::move(response)});
  }

  // Bytes that continue those added before: they share a message with what still waits, up to kMaxMessageBytes.
  void AddBytes(ByteSpan bytes, BytesField field) {
    absl::MutexLock lock(&mutex_);
    while (!bytes.empty()) {
      if (items_.empty() || items_.back().bytes == nullptr || items_.back().bytes->size() == kMaxMessageBytes) {
        Push({});
        items_.back().bytes = (items_.back().response.*field)();
      }
      std::string& tail = *items_.back().bytes;
      // Grown to its limit at the second piece: most messages have one.
      if (!tail.empty()) tail.reserve(kMaxMessageBytes);
      const ByteSpan piece = bytes.first(std::min(bytes.size(), kMaxMessageBytes - tail.size()));
      tail.append(AsText(piece));
      held_bytes_ += piece.size();
      items_.back().cost += piece.size();
      bytes = bytes.subspan(piece.size());
    }
  }

  // Moves the next response to `response`; false when there is none. The one before it counts as written.
  bool Pop(Response& response) {
    absl::MutexLock lock(&mutex_);
    held_bytes_ -= std::exchange(writing_cost_, 0);
    if (items_.empty()) return false;
    writing_cost_ = items_.front().cost;
    response = std::move(items_.front().response);
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

  bool empty() const { return held_bytes() == 0; }

 private:
  struct Item {
    Response response = {};
    std::string* bytes = nullptr;  // the response's, when it can take more
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
