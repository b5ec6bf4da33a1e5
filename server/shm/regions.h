#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "kvcompress/base/bytes.h"

// Shared memory that clients have registered.
namespace kvcompress {

// Memory of a client's, mapped: the client may write it, and cut its object short, at any time. A page that is not
// there any more reads as zeros (see bus_guard.h), and the region is then no longer intact.
class SharedRegion {
 public:
  virtual ~SharedRegion() = default;
  virtual MutableByteSpan bytes() const = 0;
  virtual bool intact() const = 0;
};

// The regions of all clients by their ids, which cannot be guessed. Thread-safe.
class RegionTable {
 public:
  // Returns the id under which the region is found until Remove.
  uint64_t Add(std::shared_ptr<SharedRegion> region);
  void Remove(uint64_t id);
  // NOT_FOUND for an id that is not, or no longer, registered. Whoever holds the region keeps its mapping.
  absl::StatusOr<std::shared_ptr<SharedRegion>> Find(uint64_t id) const;

  size_t count() const;
  uint64_t bytes() const;

 private:
  mutable absl::Mutex mutex_;
  std::map<uint64_t, std::shared_ptr<SharedRegion>> regions_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvcompress
