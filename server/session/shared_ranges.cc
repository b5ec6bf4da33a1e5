#include "kvcompress/session/shared_ranges.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_format.h"
#include "kvcompress/base/status_macros.h"

namespace kvcompress {

absl::StatusOr<MutableByteSpan> SharedRanges::Resolve(const v1::SharedMemoryRange& range,
                                                      std::shared_ptr<SharedRegion>& owner) {
  if (table_ == nullptr) return absl::FailedPreconditionError("shared memory is not enabled");
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
  return absl::OkStatus();
}

bool SharedRanges::has_room() const {
  absl::MutexLock lock(&mutex_);
  return !rooms_.empty();
}

SharedRanges::Filled SharedRanges::Fill(std::vector<Slice>& bytes) {
  Room room;
  {
    absl::MutexLock lock(&mutex_);
    room = rooms_.front();
  }
  size_t filled = 0;
  auto slice = bytes.begin();
  for (; slice != bytes.end() && filled < room.bytes.size(); ++slice) {
    const size_t take = std::min(slice->bytes.size(), room.bytes.size() - filled);
    std::memcpy(room.bytes.data() + filled, slice->bytes.data(), take);
    filled += take;
    if (take < slice->bytes.size()) {
      slice->bytes = slice->bytes.subspan(take);
      break;
    }
  }
  bytes.erase(bytes.begin(), slice);

  v1::SharedMemoryRange where;
  where.set_region(room.region);
  where.set_offset(room.offset);
  where.set_byte_size(filled);
  absl::MutexLock lock(&mutex_);
  Room& front = rooms_.front();
  front.used = true;
  front.offset += filled;
  front.bytes = front.bytes.subspan(filled);
  const bool full = front.bytes.empty();
  if (full) rooms_.pop_front();
  return {where, full};
}

void SharedRanges::EndTensor() {
  absl::MutexLock lock(&mutex_);
  if (!rooms_.empty() && rooms_.front().used) rooms_.pop_front();
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
