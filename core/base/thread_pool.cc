#include "core/base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "core/base/cgroup.h"
#include "core/base/thread.h"

namespace kvcompress {
namespace {

size_t UsableCpus() {
  size_t cpus = std::max(1u, std::thread::hardware_concurrency());
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) cpus = static_cast<size_t>(std::max(1, CPU_COUNT(&set)));
  // More threads than a container's quota of CPU time run in bursts, and stand still in between.
  if (const std::optional<double> quota = ReadCgroupLimits().cpus) {
    cpus = std::min(cpus, static_cast<size_t>(std::max(1.0, std::ceil(*quota))));
  }
  return cpus;
}

}  // namespace

ThreadPool::ThreadPool(size_t threads) {
  if (threads == 0) threads = UsableCpus();
  wanted_ = threads;
  threads_.reserve(threads);
  for (size_t i = 0; i < threads; ++i) {
    absl::StatusOr<std::thread> thread = StartThread([this] { Work(); });
    if (!thread.ok()) break;
    threads_.push_back(*std::move(thread));
  }
}

ThreadPool::~ThreadPool() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

absl::Status ThreadPool::status() const {
  return threads_.empty() ? absl::ResourceExhaustedError("no thread can be started for codecs") : absl::OkStatus();
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
