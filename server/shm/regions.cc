#include "server/shm/regions.h"

#include "absl/strings/str_format.h"
#include "server/shm/random.h"

namespace kvcompress {
namespace {

uint64_t RandomId() {
  uint64_t id = 0;
  while (id == 0) FillRandom(std::as_writable_bytes(std::span(&id, 1)));
  return id;
}

}  // namespace

RegionTable::Share& RegionTable::Share::operator=(Share&& other) noexcept {
  std::swap(table_, other.table_);
  std::swap(client_, other.client_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

RegionTable::Share::~Share() {
  if (table_ == nullptr) return;
  absl::MutexLock lock(&table_->mutex_);
  table_->bytes_used_ -= bytes_;
  const auto used = table_->clients_.find(client_);
  if (used == table_->clients_.end()) return;
  used->second.bytes -= bytes_;
  if (--used->second.regions == 0) table_->clients_.erase(used);
}

absl::StatusOr<RegionTable::Share> RegionTable::Take(const std::string& client, uint64_t bytes) {
  absl::MutexLock lock(&mutex_);
  const auto found = clients_.find(client);
  const Used used = found == clients_.end() ? Used{} : found->second;
  if (used.regions == kMaxRegionsPerClient) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("the limit of %d shared memory regions of one client is reached", kMaxRegionsPerClient));
  }
  if (bytes > capacity_ - used.bytes) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "regions of one client may have %d bytes together, as many as /dev/shm: %d are taken, and %d more are too many",
        capacity_, used.bytes, bytes));
  }
  if (bytes > 2 * capacity_ - bytes_used_) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "all regions may have %d bytes together, twice as many as /dev/shm: %d are taken, and %d more are too many",
        2 * capacity_, bytes_used_, bytes));
  }
  bytes_used_ += bytes;
  if (!client.empty()) {
    ++clients_[client].regions;
    clients_[client].bytes += bytes;
  }
  Share share;
  share.table_ = this;
  share.client_ = client;
  share.bytes_ = bytes;
  return share;
}

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
