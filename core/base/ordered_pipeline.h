#pragma once

#include <cstddef>
#include <deque>
#include <memory>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "core/base/thread_pool.h"

namespace kvcompress {

// Work on a pool whose results come out in the order in which it went in. Each item has a `work` part, which runs on
// any thread at the same time as others, and a `deliver` part, which runs after it, in the order of submission, on a
// thread that works, never two at a time.
class OrderedPipeline {
 public:
  // `client`: as ThreadPool::Queue's.
  explicit OrderedPipeline(ThreadPool& pool, std::string_view client = "") : queue_(pool, client) {}
  // Waits for everything that was submitted.
  ~OrderedPipeline() { WaitBelow(1); }

  void Submit(absl::AnyInvocable<void()> work, absl::AnyInvocable<void()> deliver);
  // The same, and the caller calls WorkOnHeld next, as ThreadPool::Queue says.
  void Hold(absl::AnyInvocable<void()> work, absl::AnyInvocable<void()> deliver);
  void WorkOnHeld() { queue_.WorkOnHeld(); }

  // Items submitted and not yet delivered.
  size_t in_flight() const;
  // Of these, those whose delivery has not begun.
  size_t to_deliver() const;

  // Blocks until fewer than `limit` items are in flight. Not for pool threads.
  void WaitBelow(size_t limit);

 private:
  struct Item {
    absl::AnyInvocable<void()> deliver;
    bool done = false;
  };

  ThreadPool::Job Add(absl::AnyInvocable<void()> work, absl::AnyInvocable<void()> deliver);
  void OnWorkDone(Item* item);

  mutable absl::Mutex mutex_;
  std::deque<std::unique_ptr<Item>> items_ ABSL_GUARDED_BY(mutex_);
  bool delivering_ ABSL_GUARDED_BY(mutex_) = false;
  ThreadPool::Queue queue_;
};

}  // namespace kvcompress
