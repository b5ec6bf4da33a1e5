#include "server/session/stream_regions.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"
#include "proto/wire/error_reason.h"

namespace kvcompress {
namespace {

absl::Status Lost(absl::Status status) { return WithReason(std::move(status), v1::SHARED_MEMORY_LOST); }

}  // namespace

absl::Status StreamRegions::CheckEnabled() const {
  // What had the region may have been started again without.
  return table_ == nullptr ? Lost(absl::FailedPreconditionError("shared memory is not enabled")) : absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<SharedRegion>> StreamRegions::Use(uint64_t id) {
  KVC_RETURN_IF_ERROR(CheckEnabled());
  // A region that this stream uses already stays its own after it was unregistered.
  if (const auto found = used_.find(id); found != used_.end()) return found->second;
  absl::StatusOr<std::shared_ptr<SharedRegion>> region = table_->Find(id);
  if (!region.ok()) return Lost(region.status());
  used_.emplace(id, *region);
  return region;
}

absl::StatusOr<MutableByteSpan> StreamRegions::Resolve(const v1::SharedMemoryRange& range,
                                                       std::shared_ptr<SharedRegion>& owner) {
  KVC_ASSIGN_OR_RETURN(owner, Use(range.region()));
  const MutableByteSpan bytes = owner->bytes();
  if (range.offset() > bytes.size() || range.byte_size() > bytes.size() - range.offset()) {
    return absl::InvalidArgumentError(absl::StrFormat("shared memory range of %d bytes at %d ends behind its region",
                                                      range.byte_size(), range.offset()));
  }
  return bytes.subspan(range.offset(), range.byte_size());
}

absl::StatusOr<Slice> StreamRegions::Input(const v1::SharedMemoryRange& range) {
  absl::MutexLock lock(&mutex_);
  std::shared_ptr<SharedRegion> region;
  KVC_ASSIGN_OR_RETURN(const MutableByteSpan bytes, Resolve(range, region));
  return Slice{bytes, HoldInput(std::move(region), bytes.size()), /*changing=*/true};
}

absl::StatusOr<StridedInput> StreamRegions::Strided(const v1::SharedMemoryRange& range) {
  absl::MutexLock lock(&mutex_);
  KVC_ASSIGN_OR_RETURN(std::shared_ptr<SharedRegion> region, Use(range.region()));
  std::vector<StridedBytes::Level> levels;
  for (const v1::SharedMemoryLevel& level : range.levels()) levels.push_back({level.count(), level.stride()});
  KVC_ASSIGN_OR_RETURN(const StridedBytes bytes,
                       StridedBytes::In(region->bytes(), range.offset(), range.byte_size(), levels));
  return StridedInput{bytes, HoldInput(std::move(region), range.byte_size())};
}

std::shared_ptr<const void> StreamRegions::HoldInput(std::shared_ptr<SharedRegion> region, uint64_t bytes) {
  absl::MutexLock lock(&releases_->mutex);
  const uint64_t number = releases_->first + releases_->ranges.size();
  releases_->ranges.push_back({bytes});
  const void* const memory = region->bytes().data();
  return {memory,
          [releases = releases_, region = std::move(region), number](const void*) { releases->Release(number); }};
}

void StreamRegions::Releases::Release(uint64_t number) {
  absl::MutexLock lock(&mutex);
  ranges[number - first].released = true;
  for (; !ranges.empty() && ranges.front().released; ranges.pop_front(), ++first) bytes += ranges.front().bytes;
}

uint64_t StreamRegions::released() const {
  absl::MutexLock lock(&releases_->mutex);
  return releases_->bytes;
}

absl::Status StreamRegions::AddBuffer(const v1::SharedMemoryRange& range) {
  // A client gives a few buffers ahead; more than this could only use up our memory.
  constexpr size_t kMaxBuffers = 4096;
  absl::MutexLock lock(&mutex_);
  if (buffers_.size() == kMaxBuffers) {
    return absl::ResourceExhaustedError(absl::StrFormat("more than %d buffers that wait for output", kMaxBuffers));
  }
  std::shared_ptr<SharedRegion> region;
  KVC_ASSIGN_OR_RETURN(const MutableByteSpan bytes, Resolve(range, region));
  if (range.levels_size() > 0) return absl::InvalidArgumentError("a buffer for output that is in pieces");
  if (bytes.empty()) return absl::InvalidArgumentError("a buffer for output of 0 bytes");
  if (!region->is_writable()) {
    return absl::InvalidArgumentError("a buffer for output in another program's memory, which is only read");
  }
  buffers_.push_back({range.region(), range.offset(), bytes, std::move(region)});
  while (!debts_.empty() && Settle(debts_.front())) debts_.pop_front();
  return absl::OkStatus();
}

bool StreamRegions::has_buffer() const {
  absl::MutexLock lock(&mutex_);
  return !buffers_.empty();
}

void StreamRegions::BeginTensor(bool joined) {
  absl::MutexLock lock(&mutex_);
  joined_ = joined;
  if (begun_ == ended_) {  // the next output goes to the front
    foreseen_ = true;
    next_ = 0;
    debts_.clear();
    if (!buffers_.empty()) buffers_.front().taken = buffers_.front().filled;
  } else {
    foreseen_ = foreseen_ && all_taken_;
  }
  all_taken_ = false;
  ++begun_;
}

OutputBuffer StreamRegions::Take(uint64_t size, bool last) {
  absl::MutexLock lock(&mutex_);
  all_taken_ = last;
  if (!foreseen_) return {};
  OutputBuffer buffer;
  if (debts_.empty() && next_ < buffers_.size()) {
    const GivenBuffer& given = buffers_[next_];
    if (given.bytes.size() - given.taken >= size) buffer = {given.bytes.subspan(given.taken, size), given.owner};
  }
  debts_.push_back({size, last && !joined_});
  if (debts_.size() == 1 && Settle(debts_.front())) debts_.pop_front();
  return buffer;
}

// Takes bytes of buffers for a debt; false when there are not enough yet.
bool StreamRegions::Settle(Debt& debt) {
  for (; debt.bytes > 0; ++next_) {
    if (next_ == buffers_.size()) return false;
    GivenBuffer& given = buffers_[next_];
    const uint64_t take = std::min<uint64_t>(debt.bytes, given.bytes.size() - given.taken);
    given.taken += take;
    debt.bytes -= take;
    if (given.taken < given.bytes.size()) break;
  }
  if (debt.last && next_ < buffers_.size() && buffers_[next_].taken > 0) ++next_;
  return true;
}

StreamRegions::Filled StreamRegions::Fill(std::vector<Slice>& bytes) {
  GivenBuffer given;
  {
    absl::MutexLock lock(&mutex_);
    given = buffers_.front();
  }
  const MutableByteSpan left = given.bytes.subspan(given.filled);
  size_t filled = 0;
  auto slice = bytes.begin();
  for (; slice != bytes.end() && filled < left.size(); ++slice) {
    const size_t take = std::min(slice->bytes.size(), left.size() - filled);
    std::byte* const to = left.data() + filled;
    if (slice->bytes.data() != to) std::memcpy(to, slice->bytes.data(), take);
    filled += take;
    if (take < slice->bytes.size()) {
      slice->bytes = slice->bytes.subspan(take);
      break;
    }
  }
  bytes.erase(bytes.begin(), slice);

  v1::SharedMemoryRange where;
  where.set_region(given.region);
  where.set_offset(given.offset + given.filled);
  where.set_byte_size(filled);
  absl::MutexLock lock(&mutex_);
  GivenBuffer& front = buffers_.front();
  front.filled += filled;
  const bool full = front.filled == front.bytes.size();
  if (full) PopBuffer();
  return {where, full};
}

void StreamRegions::PopBuffer() {
  buffers_.pop_front();
  if (next_ > 0) --next_;
}

void StreamRegions::EndTensor(bool joined) {
  absl::MutexLock lock(&mutex_);
  if (!joined && !buffers_.empty() && buffers_.front().filled > 0) PopBuffer();
  ++ended_;
}

absl::Status StreamRegions::Check() const {
  absl::MutexLock lock(&mutex_);
  for (const auto& [id, region] : used_) {
    if (!region->intact()) {
      return Lost(absl::FailedPreconditionError(absl::StrFormat(
          "shared memory region %016x has lost memory: its object was cut short, or /dev/shm is full", id)));
    }
  }
  return absl::OkStatus();
}

}  // namespace kvcompress
