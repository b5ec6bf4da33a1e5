#include "kvcompress/base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <utility>

namespace kvcompress {
namespace {

size_t UsableCpus() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return static_cast<size_t>(std::max(1, CPU_COUNT(&set)));
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace

ThreadPool::ThreadPool(size_t threads) {
  if (threads == 0) threads = UsableCpus();
  threads_.reserve(threads);
  for (size_t i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
}

ThreadPool::~ThreadPool() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

size_t ThreadPool::queued() const {
  absl::MutexLock lock(&mutex_);
  return queued_;
}

void ThreadPool::Work() {
  while (true) {
    Job job;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(
          +[](ThreadPool* pool)
               ABSL_EXCLUSIVE_LOCKS_REQUIRED(pool->mutex_) { return !pool->ready_.empty() || pool->stopping_; },
          this));
      if (ready_.empty()) return;
      Queue* queue = ready_.front();
      ready_.pop_front();
      job = std::move(queue->jobs_.front());
      queue->jobs_.pop_front();
      --queued_;
      queue->waiting_ = !queue->jobs_.empty();
      if (queue->waiting_) ready_.push_back(queue);
    }
    job();
  }
}

ThreadPool::Queue::Queue(ThreadPool& pool) : pool_(pool) {}

ThreadPool::Queue::~Queue() {
  absl::MutexLock lock(&pool_.mutex_);
  if (waiting_) pool_.ready_.remove(this);
  pool_.queued_ -= jobs_.size();
}

void ThreadPool::Queue::Push(Job job) {
  absl::MutexLock lock(&pool_.mutex_);
  jobs_.push_back(std::move(job));
  ++pool_.queued_;
  if (!waiting_) {
    waiting_ = true;
    pool_.ready_.push_back(this);
  }
}

}  // namespace kvcompress
