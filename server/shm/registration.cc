#include "server/shm/registration.h"

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/base/shared_memory.h"
#include "core/base/status_macros.h"
#include "server/shm/bus_guard.h"
#include "server/shm/random.h"

namespace kvcompress {
namespace {

absl::Status NoRegion(const std::string& name) {
  return absl::NotFoundError(absl::StrFormat("no shared memory region \"%s\" in this stream", name));
}

// What the system says of an object is about what its client has made of it: a link, a folder, a file with a lease.
absl::Status OfClient(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOutOfRange: return absl::InvalidArgumentError(status.message());
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kResourceExhausted: return status;
    default: return absl::FailedPreconditionError(status.message());
  }
}

// Far past the end of any object: from 2^62 on, and even, so that no two such bytes are neighbours.
uint64_t RandomLockOffset() {
  uint64_t random = 0;
  FillRandom(std::as_writable_bytes(std::span(&random, 1)));
  return uint64_t{1} << 62 | random >> 3 << 1;
}

// The share is given back when nobody has the region any more.
std::shared_ptr<SharedRegion> WithShare(std::shared_ptr<SharedRegion> region, RegionTable::Share share) {
  struct Both {
    RegionTable::Share share;
    std::shared_ptr<SharedRegion> region;  // goes first
  };
  SharedRegion* const memory = region.get();
  return {std::make_shared<Both>(Both{std::move(share), std::move(region)}), memory};
}

}  // namespace

absl::Status Registration::Check(const Region& region, const std::string& prefix) const {
  if (region.name.empty() || region.name.size() > kMaxNameBytes) {
    return absl::InvalidArgumentError(absl::StrFormat("a region's name has 1 to %d bytes", kMaxNameBytes));
  }
  if (!std::string_view(region.key).starts_with("/" + prefix)) {
    return absl::PermissionDeniedError(
        absl::StrFormat("shared memory key \"%s\" does not begin with \"/%s\"", region.key, prefix));
  }
  if (region.offset % kOffsetMultiple != 0 || region.byte_size < kMinBytes) {
    return absl::InvalidArgumentError(
        absl::StrFormat("region \"%s\": %d bytes at %d: expected at least %d bytes at a multiple of %d", region.name,
                        region.byte_size, region.offset, kMinBytes, kOffsetMultiple));
  }
  if (entries_.contains(region.name)) {
    return absl::AlreadyExistsError(absl::StrFormat("region \"%s\" is registered already", region.name));
  }
  if (entries_.size() == kMaxRegions) {
    return absl::ResourceExhaustedError(absl::StrFormat("the limit of %d regions a stream is reached", kMaxRegions));
  }
  return absl::OkStatus();
}

Registration::~Registration() {
  RemoveAll();
  if (!own_prefix_.empty()) RemoveSharedMemory(own_prefix_);
}

const std::string& Registration::OwnPrefix() {
  if (own_prefix_.empty()) {
    std::array<std::byte, 16> random;
    FillRandom(random);
    own_prefix_ = absl::StrCat(prefix_, absl::BytesToHexString(std::string(AsText(random))), "-");
  }
  return own_prefix_;
}

absl::StatusOr<Registration::Challenge> Registration::Register(const Region& region) {
  KVC_RETURN_IF_ERROR(Check(region, prefix_));
  const absl::StatusOr<SharedMemory> object = SharedMemory::Open(region.key);
  if (!object.ok()) return OfClient(object.status());
  Entry entry;
  KVC_ASSIGN_OR_RETURN(entry.memory, Map(*object, region));
  entry.complete = object->complete();
  entry.region = region;
  entry.region.id = 0;
  FillRandom(entry.challenge);
  return entries_.emplace(region.name, std::move(entry)).first->second.challenge;
}

absl::StatusOr<std::shared_ptr<SharedRegion>> Registration::Map(const SharedMemory& object,
                                                                const Region& region) const {
  absl::StatusOr<SharedMapping> mapping = object.Map(region.offset, region.byte_size);
  if (!mapping.ok()) return OfClient(mapping.status());
  KVC_ASSIGN_OR_RETURN(RegionTable::Share share, table_.Take(client_, region.byte_size));
  KVC_ASSIGN_OR_RETURN(std::shared_ptr<SharedRegion> memory, GuardMapping(*std::move(mapping)));
  return WithShare(std::move(memory), std::move(share));
}

absl::StatusOr<uint64_t> Registration::RegisterForeign(const Region& region) {
  if (foreign_prefix_.empty()) return absl::FailedPreconditionError("shared memory of other programs is not enabled");
  KVC_RETURN_IF_ERROR(Check(region, foreign_prefix_));
  Entry entry;
  entry.region = region;
  entry.region.id = 0;
  entry.lock_offset = RandomLockOffset();
  return entries_.emplace(region.name, std::move(entry)).first->second.lock_offset;
}

// Nothing is open between the requests: what the lock is seen on is what is mapped.
absl::StatusOr<std::shared_ptr<SharedRegion>> Registration::OpenForeign(const Entry& entry) const {
  const absl::StatusOr<SharedMemory> object = SharedMemory::Open(entry.region.key, SharedMemory::Access::kRead);
  if (!object.ok()) return OfClient(object.status());
  KVC_ASSIGN_OR_RETURN(const bool is_locked, object->IsWriteLocked(entry.lock_offset));
  if (is_locked) return Map(*object, entry.region);
  return absl::PermissionDeniedError(
      absl::StrFormat("region \"%s\" has no write lock of the byte at %d alone: it is not the client's to write",
                      entry.region.name, entry.lock_offset));
}

absl::StatusOr<Registration::Region> Registration::Confirm(const std::string& name) {
  const auto found = entries_.find(name);
  if (found == entries_.end()) return NoRegion(name);
  Entry& entry = found->second;
  if (entry.region.id != 0) return entry.region;
  if (entry.lock_offset != 0) {
    KVC_ASSIGN_OR_RETURN(entry.memory, OpenForeign(entry));
  } else if (!std::ranges::equal(entry.memory->bytes().first(entry.challenge.size()), entry.challenge)) {
    return absl::PermissionDeniedError(
        absl::StrFormat("region \"%s\" does not begin with the challenge: it is not the client's to write", name));
  }
  if (entry.complete) MapPagesNow(entry.memory->bytes());
  entry.region.id = table_.Add(entry.memory);
  return entry.region;
}

absl::StatusOr<std::vector<Registration::Region>> Registration::Status(const std::string& name) const {
  std::vector<Region> regions;
  for (const auto& [key, entry] : entries_) {
    if (name.empty() || key == name) regions.push_back(entry.region);
  }
  if (regions.empty() && !name.empty()) return NoRegion(name);
  return regions;
}

absl::StatusOr<std::vector<Registration::Region>> Registration::Unregister(const std::string& name) {
  KVC_ASSIGN_OR_RETURN(std::vector<Region> regions, Status(name));
  if (name.empty()) {
    RemoveAll();
  } else {
    table_.Remove(regions[0].id);
    entries_.erase(name);
  }
  return regions;
}

void Registration::RemoveAll() {
  for (const auto& [name, entry] : entries_) table_.Remove(entry.region.id);
  entries_.clear();
}

}  // namespace kvcompress
