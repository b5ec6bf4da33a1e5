#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>

namespace kvcompress {

// The threads on which gRPC receives and calls reactors, and which of them may work on what they have received, in
// place of one of the pool's.
class ReceivingThreads {
 public:
  ReceivingThreads(size_t cpus, size_t pool_threads)
      : count_(std::clamp<size_t>(cpus / 2, 2, 16)), pool_threads_(pool_threads) {}

  size_t count() const { return count_; }

  // Whether the calling one works on what has come on one of so many streams; then it calls EndWork afterwards.
  // One always goes on receiving: it brings the pool what the others are too busy for, so that clients share the pool's
  // time, and small calls wait for no messages of long streams. And not where they are fewer than the pool's, and
  // streams are so many that CPUs idle while they are at work: two for each stream let one receive meanwhile.
  bool BeginWork(size_t streams) {
    if (pool_threads_ > count_ && 2 * streams > count_) return false;
    if (at_work_.fetch_add(1) + 1 < count_) return true;
    EndWork();
    return false;
  }
  void EndWork() { at_work_.fetch_sub(1); }

 private:
  const size_t count_;
  const size_t pool_threads_;
  std::atomic<size_t> at_work_ = 0;
};

}  // namespace kvcompress
