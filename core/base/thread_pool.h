#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "core/base/fair_turns.h"

namespace kvcompress {

// A fixed number of threads, shared fairly: jobs wait in queues, one queue a stream of work, and queues belong to
// clients. The threads' time is divided evenly among the clients that have jobs, and each one's part among its queues,
// by what jobs have really taken: many streams, or slow codecs, of one client do not make another wait for more than
// the jobs that are in work. Callers bound what they queue (OrderedPipeline).
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

 private:
  struct Client;
  // A queue as the threads know it, which may end before its last job has returned.
  struct Line : std::enable_shared_from_this<Line> {
    explicit Line(Client& owner) : client(owner) {}

    Client& client;
    FairShare share;
    std::deque<Job> jobs;
  };

 public:
  // First in, first out within itself. Must outlive its jobs, and the pool must outlive it.
  class Queue {
   public:
    // `client`: whose work it is, by any name.
    explicit Queue(ThreadPool& pool, std::string_view client = "");
    ~Queue();
    Queue(const Queue&) = delete;
    Queue& operator=(const Queue&) = delete;

    void Push(Job job);
    // The same, but the caller calls WorkOnHeld next, and no thread is woken for the job before that.
    void Hold(Job job);
    // Does what is held on the calling thread, in place of one of the pool's, to which it must not belong: as long as
    // fewer jobs are in work than the pool has threads, and no other waits. The rest is left to the pool's.
    void WorkOnHeld();

   private:
    ThreadPool& pool_;
    const std::shared_ptr<Line> line_;  // guarded by the pool's mutex
  };

  size_t size() const { return threads_.size(); }
  size_t wanted() const { return wanted_; }
  // RESOURCE_EXHAUSTED without any thread.
  absl::Status status() const;

  // Jobs that no thread has taken yet.
  size_t queued() const;

 private:
  struct Client {
    FairShare share;
    FairTurns<Line> lines;
    size_t queues = 0;
  };

  void Work();
  // Does the first job of the line, which waits for a turn. Whether it `goes_on` to wait with the jobs that it has
  // left.
  void WorkOn(Line& line, bool goes_on) noexcept ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::shared_ptr<Line> AddLine(std::string_view client);
  void RemoveLine(Line& line);
  void Wait(Line& line) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StopWaiting(Line& line) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Forgets clients without queues, unless they have had more than their part.
  void ForgetClients() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  std::map<std::string, Client, std::less<>> clients_ ABSL_GUARDED_BY(mutex_);
  FairTurns<Client> turns_ ABSL_GUARDED_BY(mutex_);
  size_t queued_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t in_work_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  size_t wanted_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace kvcompress
