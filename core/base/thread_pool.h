#pragma once

#include <cstddef>
#include <deque>
#include <list>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace kvcompress {

// A fixed number of threads, shared fairly: jobs wait in queues, one queue a stream of work, and the threads take from
// the queues in turn, so that a short queue does not wait behind a long one. Callers bound what they queue
// (OrderedPipeline).
class ThreadPool {
 public:
  using Job = absl::AnyInvocable<void()>;

  // `threads` = 0: one for each CPU that this process may run on, and may use by its cgroup. Where the system gives
  // fewer (ulimit -u, a limit on pids) the pool goes on with those; where it gives none, status() says so, and what is
  // queued is never done.
  explicit ThreadPool(size_t threads);
  // Runs what is queued, then joins the threads.
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // First in, first out within itself. Must outlive its jobs, and the pool must outlive it.
  class Queue {
   public:
    explicit Queue(ThreadPool& pool);
    ~Queue();
    Queue(const Queue&) = delete;
    Queue& operator=(const Queue&) = delete;

    void Push(Job job);

   private:
    friend class ThreadPool;
    ThreadPool& pool_;
    std::deque<Job> jobs_;  // guarded by the pool's mutex
    bool waiting_ = false;  // whether it stands in pool_.ready_
  };

  size_t size() const { return threads_.size(); }
  size_t wanted() const { return wanted_; }
  // RESOURCE_EXHAUSTED without any thread.
  absl::Status status() const;

  // Jobs that no thread has taken yet.
  size_t queued() const;

 private:
  void Work();

  mutable absl::Mutex mutex_;
  std::list<Queue*> ready_ ABSL_GUARDED_BY(mutex_);  // queues that have jobs, the next to be served first
  size_t queued_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  size_t wanted_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace kvcompress
