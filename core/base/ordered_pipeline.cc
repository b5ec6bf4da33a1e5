#include "core/base/ordered_pipeline.h"

#include <utility>

namespace kvcompress {

void OrderedPipeline::Submit(absl::AnyInvocable<void()> work, absl::AnyInvocable<void()> deliver) {
  queue_.Push(Add(std::move(work), std::move(deliver)));
}

void OrderedPipeline::Hold(absl::AnyInvocable<void()> work, absl::AnyInvocable<void()> deliver) {
  queue_.Hold(Add(std::move(work), std::move(deliver)));
}

ThreadPool::Job OrderedPipeline::Add(absl::AnyInvocable<void()> work, absl::AnyInvocable<void()> deliver) {
  Item* item;
  {
    absl::MutexLock lock(&mutex_);
    items_.push_back(std::make_unique<Item>());
    item = items_.back().get();
    item->deliver = std::move(deliver);
  }
  return [this, item, work = std::move(work)]() mutable {
    work();
    work = nullptr;
    OnWorkDone(item);
  };
}

size_t OrderedPipeline::in_flight() const {
  absl::MutexLock lock(&mutex_);
  return items_.size();
}

size_t OrderedPipeline::to_deliver() const {
  absl::MutexLock lock(&mutex_);
  return items_.size() - (delivering_ ? 1 : 0);
}

void OrderedPipeline::WaitBelow(size_t limit) {
  absl::MutexLock lock(&mutex_);
  const auto below = [this, limit]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    // An item leaves after its delivery, but the thread that delivered still holds `this` until it has seen the next
    // one.
    return items_.size() < limit && (limit > 1 || !delivering_);
  };
  mutex_.Await(absl::Condition(&below));
}

void OrderedPipeline::OnWorkDone(Item* item) {
  absl::MutexLock lock(&mutex_);
  item->done = true;
  // One thread delivers at a time; whoever finishes meanwhile leaves its item to that thread.
  if (delivering_) return;
  delivering_ = true;
  while (!items_.empty() && items_.front()->done) {
    absl::AnyInvocable<void()> deliver = std::move(items_.front()->deliver);
    mutex_.Unlock();
    deliver();
    deliver = nullptr;
    mutex_.Lock();
    items_.pop_front();
  }
  delivering_ = false;
}

}  // namespace kvcompress
