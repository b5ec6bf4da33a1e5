#include "client/remote/slice_reader.h"

#include <functional>

#include "core/base/status_macros.h"

namespace kvcompress {
namespace {

bool Contains(ByteSpan whole, ByteSpan part) {
  const std::less<> less;
  return !less(part.data(), whole.data()) && less(part.data(), whole.data() + whole.size());
}

}  // namespace

absl::StatusOr<Slice> SliceReader::Read(const ByteSource& source, uint64_t offset, size_t count) {
  Scratch scratch;
  {
    absl::MutexLock lock(&pool_->mutex);
    if (!pool_->idle.empty()) {
      scratch = std::move(pool_->idle.back());
      pool_->idle.pop_back();
    }
  }
  if (scratch == nullptr) scratch = std::make_unique<std::vector<std::byte>>();
  KVC_ASSIGN_OR_RETURN(const ByteSpan bytes, source.Get(offset, count, *scratch));
  if (Contains(*scratch, bytes)) {
    return Slice{bytes, std::shared_ptr<const void>(scratch.release(), [pool = pool_](std::vector<std::byte>* buffer) {
                   absl::MutexLock lock(&pool->mutex);
                   pool->idle.emplace_back(buffer);
                 })};
  }
  absl::MutexLock lock(&pool_->mutex);
  pool_->idle.push_back(std::move(scratch));
  if (loan_ == nullptr) {
    pool_->borrowed = true;
    loan_ = std::shared_ptr<const void>(pool_.get(), [pool = pool_](const void*) {
      absl::MutexLock inner(&pool->mutex);
      pool->borrowed = false;
    });
  }
  return Slice{bytes, loan_};
}

bool SliceReader::WaitUntilReleased(absl::Time limit) {
  loan_.reset();
  absl::MutexLock lock(&pool_->mutex);
  const auto released = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(pool_->mutex) { return !pool_->borrowed; };
  return pool_->mutex.AwaitWithDeadline(absl::Condition(&released), limit);
}

}  // namespace kvcompress
