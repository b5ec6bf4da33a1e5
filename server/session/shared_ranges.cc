#include "server/session/shared_ranges.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"

namespace kvcompress {

absl::Status SharedRanges::CheckEnabled() const {
  return table_ == nullptr ? absl::FailedPreconditionError("shared memory is not enabled") : absl::OkStatus();
}

absl::StatusOr<MutableByteSpan> SharedRanges::Resolve(const v1::SharedMemoryRange& range,
                                                      std::shared_ptr<SharedRegion>& owner) {
  KVC_RETURN_IF_ERROR(CheckEnabled());
  const auto found = used_.find(range.region());
  // A region that this stream uses already stays its own after it was unregistered.
  if (found != used_.end()) {
    owner = found->second;
  } else {
    KVC_ASSIGN_OR_RETURN(owner, table_->Find(range.region()));
    used_.emplace(range.region(), owner);
  }
  const MutableByteSpan bytes = owner->bytes();
  if (range.offset() > bytes.size() || range.byte_size() > bytes.size() - range.offset()) {
    return absl::InvalidArgumentError(absl::StrFormat("shared memory range of %d bytes at %d ends behind its region",
                                                      range.byte_size(), range.offset()));
  }
  return bytes.subspan(range.offset(), range.byte_size());
}

absl::StatusOr<Slice> SharedRanges::Input(const v1::SharedMemoryRange& range) {
  absl::MutexLock lock(&mutex_);
  std::shared_ptr<SharedRegion> region;
  KVC_ASSIGN_OR_RETURN(const MutableByteSpan bytes, Resolve(range, region));
  uint64_t number = 0;
  {
    absl::MutexLock releases_lock(&releases_->mutex);
    number = releases_->first + releases_->ranges.size();
    releases_->ranges.push_back({bytes.size()});
  }
  const auto release = [releases = releases_, region, number](const void*) { releases->Release(number); };
  return Slice{bytes, std::shared_ptr<const void>(bytes.data(), release), /*changing=*/true};
}

void SharedRanges::Releases::Release(uint64_t number) {
  absl::MutexLock lock(&mutex);
  ranges[number - first].released = true;
  for (; !ranges.empty() && ranges.front().released; ranges.pop_front(), ++first) bytes += ranges.front().bytes;
}

uint64_t SharedRanges::released() const {
  absl::MutexLock lock(&releases_->mutex);
  return releases_->bytes;
}

absl::Status SharedRanges::AddRoom(const v1::SharedMemoryRange& range) {
  // A client gives a few rooms ahead; what is above this could only use up our memory.
  constexpr size_t kMaxRooms = 4096;
  absl::MutexLock lock(&mutex_);
  if (rooms_.size() == kMaxRooms) {
    return absl::ResourceExhaustedError(absl::StrFormat("more than %d rooms that wait for output", kMaxRooms));
  }
  std::shared_ptr<SharedRegion> region;
  KVC_ASSIGN_OR_RETURN(const MutableByteSpan bytes, Resolve(range, region));
  if (bytes.empty()) return absl::InvalidArgumentError("a room for output of 0 bytes");
  rooms_.push_back({range.region(), range.offset(), bytes, std::move(region)});
  while (!debts_.empty() && Settle(debts_.front())) debts_.pop_front();
  return absl::OkStatus();
}

bool SharedRanges::has_room() const {
  absl::MutexLock lock(&mutex_);
  return !rooms_.empty();
}

void SharedRanges::BeginTensor() {
  absl::MutexLock lock(&mutex_);
  if (begun_ == ended_) {  // the next output goes to the front
    foreseen_ = true;
    next_ = 0;
    debts_.clear();
  } else {
    foreseen_ = foreseen_ && all_taken_;
  }
  all_taken_ = false;
  ++begun_;
}

OutputBuffer SharedRanges::Take(uint64_t size, bool last) {
  absl::MutexLock lock(&mutex_);
  all_taken_ = last;
  if (!foreseen_) return {};
  OutputBuffer place;
  if (debts_.empty() && next_ < rooms_.size()) {
    const Room& room = rooms_[next_];
    if (room.bytes.size() - room.taken >= size) place = {room.bytes.subspan(room.taken, size), room.owner};
  }
  debts_.push_back({size, last});
  if (debts_.size() == 1 && Settle(debts_.front())) debts_.pop_front();
  return place;
}

// Takes room for a debt; false when there is not enough yet.
bool SharedRanges::Settle(Debt& debt) {
  for (; debt.bytes > 0; ++next_) {
    if (next_ == rooms_.size()) return false;
    Room& room = rooms_[next_];
    const uint64_t take = std::min<uint64_t>(debt.bytes, room.bytes.size() - room.taken);
    room.taken += take;
    debt.bytes -= take;
    if (room.taken < room.bytes.size()) break;
  }
  if (debt.last && next_ < rooms_.size() && rooms_[next_].taken > 0) ++next_;
  return true;
}

SharedRanges::Filled SharedRanges::Fill(std::vector<Slice>& bytes) {
  Room room;
  {
    absl::MutexLock lock(&mutex_);
    room = rooms_.front();
  }
  const MutableByteSpan left = room.bytes.subspan(room.filled);
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
  where.set_region(room.region);
  where.set_offset(room.offset + room.filled);
  where.set_byte_size(filled);
  absl::MutexLock lock(&mutex_);
  Room& front = rooms_.front();
  front.filled += filled;
  const bool full = front.filled == front.bytes.size();
  if (full) PopRoom();
  return {where, full};
}

void SharedRanges::PopRoom() {
  rooms_.pop_front();
  if (next_ > 0) --next_;
}

void SharedRanges::EndTensor() {
  absl::MutexLock lock(&mutex_);
  if (!rooms_.empty() && rooms_.front().filled > 0) PopRoom();
  ++ended_;
}

absl::Status SharedRanges::Check() const {
  absl::MutexLock lock(&mutex_);
  for (const auto& [id, region] : used_) {
    if (!region->intact()) {
      return absl::FailedPreconditionError(absl::StrFormat(
          "shared memory region %016x has lost memory: its object was cut short, or /dev/shm is full", id));
    }
  }
  return absl::OkStatus();
}

}  // namespace kvcompress
