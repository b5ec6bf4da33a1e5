#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "core/base/bytes.h"
#include "core/base/shared_memory.h"

// Shared memory that clients have registered.
namespace kvcompress {

// Memory that a client has registered, mapped here. Others may write it, and cut its object short, at any time. A page
// that is gone reads as zeros (bus_guard.h), and the region is then not intact.
class SharedRegion {
 public:
  virtual ~SharedRegion() = default;
  virtual MutableByteSpan bytes() const = 0;
  virtual bool intact() const = 0;
  // Whether the daemon may write the bytes. An access that it may not have ends the process.
  virtual bool is_writable() const = 0;
};

// The regions of all clients by their ids, which cannot be guessed, and the limits of what clients register.
// Thread-safe.
//
// All objects together have at most the memory of /dev/shm, but one may be registered many times, and each mapping has
// page tables of its own, which count against no other limit. Therefore the regions of one client together may be as
// large as /dev/shm, and those of all clients twice that.
class RegionTable {
  struct Used {
    size_t regions = 0;
    uint64_t bytes = 0;
  };

 public:
  static constexpr size_t kMaxRegionsPerClient = 3072;

  // What a region takes of the limits of its client and of all. The destructor gives it back.
  class Share {
   public:
    Share() = default;
    Share(Share&& other) noexcept { *this = std::move(other); }
    Share& operator=(Share&& other) noexcept;
    ~Share();

   private:
    friend class RegionTable;
    RegionTable* table_ = nullptr;
    std::string client_;
    uint64_t bytes_ = 0;
  };

  // `capacity`: bytes of /dev/shm.
  explicit RegionTable(uint64_t capacity = SharedMemoryCapacity()) : capacity_(capacity) {}

  // For a region of `bytes` that is to be mapped. An empty `client` cannot be told from others: its regions together
  // have no limit but that of all clients. RESOURCE_EXHAUSTED above a limit.
  absl::StatusOr<Share> Take(const std::string& client, uint64_t bytes);

  // Returns the id under which the region is found until Remove.
  uint64_t Add(std::shared_ptr<SharedRegion> region);
  void Remove(uint64_t id);
  // NOT_FOUND for an id that is not registered. Whoever holds the region keeps its mapping.
  absl::StatusOr<std::shared_ptr<SharedRegion>> Find(uint64_t id) const;

  size_t count() const;
  uint64_t bytes() const;

 private:
  mutable absl::Mutex mutex_;
  std::map<uint64_t, std::shared_ptr<SharedRegion>> regions_ ABSL_GUARDED_BY(mutex_);
  const uint64_t capacity_;
  uint64_t bytes_used_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<std::string, Used> clients_ ABSL_GUARDED_BY(mutex_);  // each has a region
};

}  // namespace kvcompress
