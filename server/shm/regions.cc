#include "kvcompress/shm/regions.h"

#include "absl/strings/str_format.h"
#include "kvcompress/shm/random.h"

namespace kvcompress {
namespace {

uint64_t RandomId() {
  uint64_t id = 0;
  while (id == 0) FillRandom(std::as_writable_bytes(std::span(&id, 1)));
  return id;
}

}  // namespace

uint64_t RegionTable::Add(std::shared_ptr<SharedRegion> region) {
  absl::MutexLock lock(&mutex_);
  uint64_t id = RandomId();
  while (regions_.contains(id)) id = RandomId();
  regions_.emplace(id, std::move(region));
  return id;
}

void RegionTable::Remove(uint64_t id) {
  absl::MutexLock lock(&mutex_);
  regions_.erase(id);
}

absl::StatusOr<std::shared_ptr<SharedRegion>> RegionTable::Find(uint64_t id) const {
  absl::MutexLock lock(&mutex_);
  const auto found = regions_.find(id);
  if (found == regions_.end()) return absl::NotFoundError(absl::StrFormat("no shared memory region %016x", id));
  return found->second;
}

size_t RegionTable::count() const {
  absl::MutexLock lock(&mutex_);
  return regions_.size();
}

uint64_t RegionTable::bytes() const {
  absl::MutexLock lock(&mutex_);
  uint64_t bytes = 0;
  for (const auto& [id, region] : regions_) bytes += region->bytes().size();
  return bytes;
}

}  // namespace kvcompress
