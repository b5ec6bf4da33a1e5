#include "kvcompress/client/shared_memory_pool.h"

#include <algorithm>

#include "absl/time/clock.h"
#include "kvcompress/base/status_macros.h"

namespace kvcompress {
namespace {

// A daemon that loses what was registered again and again is left alone.
constexpr int kMaxLosses = 8;

// Kept for later calls; what a burst of calls had beyond these is given back.
constexpr size_t kMaxIdleArenas = 8;

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

// Asks the daemon once, and again after Forget() or while it does not answer.
absl::StatusOr<std::shared_ptr<SharedMemoryLink>> SharedMemoryPool::Link(absl::Time deadline) {
  absl::MutexLock lock(&state_->mutex);
  KVC_RETURN_IF_ERROR(state_->status);
  if (state_->link == nullptr) {
    auto link = SharedMemoryLink::Open(channel_, deadline);
    if (!link.ok()) return link.status();
    state_->link = *std::move(link);
  }
  return state_->link;
}

absl::StatusOr<std::unique_ptr<RegisteredMemory>> SharedMemoryPool::Register(size_t bytes, absl::Time deadline) {
  deadline = std::min(deadline, absl::Now() + timeout_);
  KVC_ASSIGN_OR_RETURN(const std::shared_ptr<SharedMemoryLink> link, Link(deadline));
  return link->Register(bytes, deadline);
}

std::unique_ptr<RegisteredMemory> SharedMemoryPool::Take(absl::Time deadline) {
  {
    absl::MutexLock lock(&state_->mutex);
    if (!state_->idle.empty()) {
      std::unique_ptr<RegisteredMemory> arena = std::move(state_->idle.back());
      state_->idle.pop_back();
      return arena;
    }
  }
  auto arena = Register(kArenaBytes, deadline);
  // CANCELLED: a deadline that ended the stream in the middle of a question.
  if (absl::IsUnavailable(arena.status()) || absl::IsDeadlineExceeded(arena.status()) ||
      absl::IsCancelled(arena.status())) {
    Forget();
    return nullptr;
  }
  absl::MutexLock lock(&state_->mutex);
  if (arena.ok()) {
    state_->used = true;
    return *std::move(arena);
  }
  // More calls at a time than there is memory for go without; where there is none at all nobody asks again.
  if (!absl::IsResourceExhausted(arena.status()) || !state_->used) state_->status = arena.status();
  return nullptr;
}

void SharedMemoryPool::PutBack(std::unique_ptr<RegisteredMemory> arena) {
  absl::MutexLock lock(&state_->mutex);
  state_->losses = 0;
  if (state_->idle.size() < kMaxIdleArenas) state_->idle.push_back(std::move(arena));
}

std::unique_ptr<SharedBuffer> SharedMemoryPool::Allocate(size_t bytes) {
  constexpr size_t kMinBytes = 4096;
  auto memory = Register(std::max(bytes, kMinBytes), absl::InfiniteFuture());
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

void SharedMemoryPool::Forget() {
  std::shared_ptr<SharedMemoryLink> link;
  std::vector<std::unique_ptr<RegisteredMemory>> idle;
  absl::MutexLock lock(&state_->mutex);
  link.swap(state_->link);
  idle.swap(state_->idle);
  state_->buffers.clear();
  state_->used = false;
  if (++state_->losses == kMaxLosses) state_->status = absl::UnavailableError("shared memory is lost again and again");
}

absl::Status SharedMemoryPool::status() const {
  absl::MutexLock lock(&state_->mutex);
  return state_->status;
}

}  // namespace kvcompress
