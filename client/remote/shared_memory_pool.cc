#include "client/remote/shared_memory_pool.h"

#include <algorithm>

#include "absl/time/clock.h"
#include "core/base/status_macros.h"

namespace kvcompress {
namespace {

// From so many losses in a row on, a daemon is not asked again for a whole pause. After the first, which one that was
// started again may cost, it is asked at once, and then for each further one twice as late.
constexpr int kFreeLosses = 2;
constexpr int kMaxLosses = 8;

// How much is kept for later calls; what a burst of calls had beyond that is given back.
constexpr size_t kMaxIdle = 8;

// Whether the daemon is not there, or did not answer in time; CANCELLED is a deadline that ended the stream in the
// middle of a question.
bool IsForNow(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) || absl::IsCancelled(status);
}

}  // namespace

class SharedMemoryPool::Buffer final : public SharedBuffer {
 public:
  Buffer(std::shared_ptr<State> state, std::unique_ptr<RegisteredMemory> memory, size_t size)
      : state_(std::move(state)), memory_(std::move(memory)), size_(size) {
    absl::MutexLock lock(&state_->mutex);
    state_->buffers.emplace(memory_->bytes().data(), memory_.get());
  }
  ~Buffer() override {
    absl::MutexLock lock(&state_->mutex);
    state_->buffers.erase(memory_->bytes().data());
  }

  MutableByteSpan bytes() override { return memory_->bytes().first(size_); }

 private:
  const std::shared_ptr<State> state_;
  const std::unique_ptr<RegisteredMemory> memory_;
  const size_t size_;
};

// Asks the daemon once, and again after Forget(), a pause, or while it does not answer.
absl::StatusOr<std::shared_ptr<SharedMemoryLink>> SharedMemoryPool::Link(absl::Time deadline) {
  State& state = *state_;
  const auto settled = [&state]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(state.mutex) { return !state.opening; };
  absl::MutexLock lock(&state.mutex);
  if (!state.mutex.AwaitWithDeadline(absl::Condition(&settled), deadline)) {
    return absl::DeadlineExceededError("others wait for the daemon, too");
  }
  if (!state.status.ok() && absl::Now() >= state.paused_until) {
    state.status = absl::OkStatus();
  }
  KVC_RETURN_IF_ERROR(state.status);
  if (state.link == nullptr) {
    state.opening = true;
    state.mutex.Unlock();
    auto link = SharedMemoryLink::Open(channel_, deadline);
    state.mutex.Lock();
    state.opening = false;
    if (link.ok()) {
      state.link = *std::move(link);
    } else {
      if (!IsForNow(link.status())) Pause(link.status(), pause_);
      return link.status();
    }
  }
  return state.link;
}

void SharedMemoryPool::Pause(const absl::Status& status, absl::Duration pause) {
  if (!state_->status.ok()) return;
  state_->status = status;
  state_->paused_until = absl::Now() + pause;
}

std::unique_ptr<RegisteredMemory> SharedMemoryPool::Take(absl::Time deadline) {
  {
    absl::MutexLock lock(&state_->mutex);
    if (!state_->idle.empty()) {
      std::unique_ptr<RegisteredMemory> memory = std::move(state_->idle.back());
      state_->idle.pop_back();
      return memory;
    }
  }
  deadline = std::min(deadline, absl::Now() + timeout_);
  const absl::StatusOr<std::shared_ptr<SharedMemoryLink>> link = Link(deadline);
  if (!link.ok()) return nullptr;
  auto memory = (*link)->Register(kCallBytes, deadline);
  if (absl::IsAborted(memory.status())) return nullptr;
  if (IsForNow(memory.status())) {
    Forget(link->get());
    return nullptr;
  }
  const bool lost = (*link)->is_lost();
  {
    absl::MutexLock lock(&state_->mutex);
    if (memory.ok()) {
      state_->used = true;
      return *std::move(memory);
    }
    // If there are more calls at a time than memory, some go without; if there is no memory at all, nobody asks for a
    // while.
    if (!absl::IsResourceExhausted(memory.status()) || !state_->used) Pause(memory.status(), pause_);
  }
  if (lost) Forget(link->get());  // a refusal ends the stream
  return nullptr;
}

void SharedMemoryPool::PutBack(std::unique_ptr<RegisteredMemory> memory) {
  absl::MutexLock lock(&state_->mutex);
  state_->losses = 0;
  if (memory->link() == state_->link.get() && state_->idle.size() < kMaxIdle) state_->idle.push_back(std::move(memory));
}

std::unique_ptr<SharedBuffer> SharedMemoryPool::Allocate(size_t bytes) {
  constexpr size_t kMinBytes = 4096;
  const absl::Time deadline = absl::Now() + timeout_;
  const absl::StatusOr<std::shared_ptr<SharedMemoryLink>> link = Link(deadline);
  if (!link.ok()) return nullptr;
  auto memory = (*link)->Register(std::max(bytes, kMinBytes), deadline);
  if (!memory.ok()) return nullptr;
  return std::make_unique<Buffer>(state_, *std::move(memory), bytes);
}

std::optional<v1::SharedMemoryRange> SharedMemoryPool::Find(ByteSpan bytes) const {
  absl::MutexLock lock(&state_->mutex);
  auto found = state_->buffers.upper_bound(bytes.data());
  if (found == state_->buffers.begin()) return std::nullopt;
  --found;
  const ByteSpan memory = found->second->bytes();
  const auto offset = static_cast<size_t>(bytes.data() - memory.data());
  if (offset > memory.size() || bytes.size() > memory.size() - offset) return std::nullopt;
  v1::SharedMemoryRange range;
  range.set_region(found->second->region());
  range.set_offset(offset);
  range.set_byte_size(bytes.size());
  return range;
}

void SharedMemoryPool::Forget(const SharedMemoryLink* lost) {
  std::shared_ptr<SharedMemoryLink> link;  // destroyed after the lock, as that may wait
  std::vector<std::unique_ptr<RegisteredMemory>> idle;
  absl::MutexLock lock(&state_->mutex);
  if (state_->link.get() != lost) return;  // several calls lose it, but once
  link.swap(state_->link);
  idle.swap(state_->idle);
  state_->buffers.clear();
  state_->used = false;
  const int losses = state_->losses = std::min(state_->losses + 1, kMaxLosses);
  if (losses <= kFreeLosses) return;
  Pause(absl::UnavailableError("shared memory is lost again and again"), pause_ / (1 << (kMaxLosses - losses)));
}

absl::Status SharedMemoryPool::status() const {
  absl::MutexLock lock(&state_->mutex);
  return state_->status;
}

}  // namespace kvcompress
