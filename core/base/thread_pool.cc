#include "core/base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
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
  absl::MutexLock lock(&mutex_);
  while (true) {
    mutex_.Await(absl::Condition(
        +[](ThreadPool* pool) ABSL_EXCLUSIVE_LOCKS_REQUIRED(pool->mutex_) {
          return pool->turns_.empty() ? pool->stopping_ : pool->in_work_ < pool->threads_.size();
        },
        this));
    if (turns_.empty()) return;
    WorkOn(turns_.Next().lines.Next(), true);
  }
}

void ThreadPool::WorkOn(Line& line, bool goes_on) noexcept {
  using Clock = std::chrono::steady_clock;
  const std::shared_ptr<Line> kept = line.shared_from_this();
  Client& client = line.client;
  Job job = std::move(line.jobs.front());
  line.jobs.pop_front();
  --queued_;
  ++in_work_;
  const double of_client = turns_.Begin(client);
  const double of_line = client.lines.Begin(line);
  if (line.jobs.empty() || !goes_on) StopWaiting(line);

  mutex_.Unlock();
  const Clock::time_point start = Clock::now();
  job();
  job = nullptr;
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  mutex_.Lock();

  --in_work_;
  client.lines.End(line, of_line, seconds);
  turns_.End(client, of_client, seconds);
}

std::shared_ptr<ThreadPool::Line> ThreadPool::AddLine(std::string_view client) {
  absl::MutexLock lock(&mutex_);
  auto found = clients_.find(client);
  if (found == clients_.end()) {
    ForgetClients();
    found = clients_.try_emplace(std::string(client)).first;
  }
  ++found->second.queues;
  return std::make_shared<Line>(found->second);
}

void ThreadPool::RemoveLine(Line& line) {
  std::deque<Job> dropped;  // destroyed without the lock, which their destructors may want
  absl::MutexLock lock(&mutex_);
  queued_ -= line.jobs.size();
  dropped = std::exchange(line.jobs, {});
  StopWaiting(line);
  --line.client.queues;
}

void ThreadPool::Wait(Line& line) {
  line.client.lines.Add(line);
  turns_.Add(line.client);
}

void ThreadPool::StopWaiting(Line& line) {
  line.client.lines.Remove(line);
  if (line.client.lines.empty()) turns_.Remove(line.client);
}

void ThreadPool::ForgetClients() {
  std::erase_if(clients_, [&](const auto& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const Client& client = entry.second;
    return client.queues == 0 && client.share.in_work == 0 && client.share.had <= turns_.now();
  });
}

ThreadPool::Queue::Queue(ThreadPool& pool, std::string_view client) : pool_(pool), line_(pool.AddLine(client)) {}

ThreadPool::Queue::~Queue() { pool_.RemoveLine(*line_); }

void ThreadPool::Queue::Push(Job job) {
  absl::MutexLock lock(&pool_.mutex_);
  line_->jobs.push_back(std::move(job));
  ++pool_.queued_;
  pool_.Wait(*line_);
}

void ThreadPool::Queue::Hold(Job job) {
  absl::MutexLock lock(&pool_.mutex_);
  line_->jobs.push_back(std::move(job));
  ++pool_.queued_;
}

void ThreadPool::Queue::WorkOnHeld() {
  absl::MutexLock lock(&pool_.mutex_);
  while (!line_->jobs.empty()) {
    const bool may_work = pool_.turns_.empty() && pool_.in_work_ < pool_.threads_.size();
    pool_.Wait(*line_);
    if (!may_work) return;
    pool_.WorkOn(*line_, false);
  }
}

}  // namespace kvcompress
