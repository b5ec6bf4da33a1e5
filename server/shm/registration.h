#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/shm/regions.h"

namespace kvcompress {

// What one client has registered on its SharedMemory stream. The destructor unregisters all of it; whoever uses a
// region at that moment keeps its memory. Not thread-safe.
//
// Before the daemon touches more than the first page of a region, the client must prove that it may write the object:
// it puts 16 random bytes at the region's beginning. Otherwise a client could have the daemon, which may be able to
// open more than the client, read or write somebody else's object. A client on another machine has no way to write
// them.
//
// An object that another program has made and uses, a foreign one, is not written, not even for that proof: the client
// holds a write lock (fcntl(2)) of one byte far past the object's end, which the daemon chooses, and only who can open
// the object for writing can take it. The daemon reads such objects, and never writes them.
class Registration {
 public:
  static constexpr size_t kMaxRegions = 64;
  static constexpr size_t kMaxNameBytes = 256;
  static constexpr uint64_t kOffsetMultiple = 4096;
  static constexpr uint64_t kMinBytes = 4096;
  using Challenge = std::array<std::byte, 16>;

  struct Region {
    std::string name;
    std::string key;
    uint64_t offset = 0;
    uint64_t byte_size = 0;
    uint64_t id = 0;  // in the table; 0 before it is confirmed
  };

  // Keys must begin with "/" and `prefix`, those of foreign objects with "/" and `foreign_prefix`, where that is not
  // empty. `client`: as RegionTable::Take's.
  Registration(RegionTable& table, std::string prefix, std::string client, std::string foreign_prefix = "")
      : table_(table),
        prefix_(std::move(prefix)),
        client_(std::move(client)),
        foreign_prefix_(std::move(foreign_prefix)) {}
  Registration(const Registration&) = delete;
  Registration& operator=(const Registration&) = delete;
  ~Registration();

  // What keys of this stream's own begin with, after "/": `prefix`, and what nobody can guess. A client that has made
  // an object under such a key may be ended before the daemon hears of it, or before it removes the key: the destructor
  // removes those that are left.
  const std::string& OwnPrefix();

  // Maps the part of the object that `region` describes (its id is ignored), and returns the bytes that Confirm will
  // look for at its beginning. PERMISSION_DENIED for another prefix or an object that the daemon may not open,
  // NOT_FOUND for a key that does not exist, INVALID_ARGUMENT for a part that the object does not have, ALREADY_EXISTS
  // for a name in use, RESOURCE_EXHAUSTED over kMaxRegions or what the client may have in all.
  absl::StatusOr<Challenge> Register(const Region& region);
  // The same for a foreign object, which Confirm opens and maps. Returns the offset of the byte that must be locked
  // then. FAILED_PRECONDITION where foreign objects are not enabled.
  absl::StatusOr<uint64_t> RegisterForeign(const Region& region);
  // Puts the region into the table. PERMISSION_DENIED when the challenge is not there, or the byte is not locked, or is
  // a part of what is; of a foreign object also what Register says of its object.
  absl::StatusOr<Region> Confirm(const std::string& name);
  // The region of this name, all where it is empty. NOT_FOUND.
  absl::StatusOr<std::vector<Region>> Status(const std::string& name) const;
  // The same, and takes them out of the table.
  absl::StatusOr<std::vector<Region>> Unregister(const std::string& name);

 private:
  struct Entry {
    Region region;
    Challenge challenge = {};
    uint64_t lock_offset = 0;              // of a foreign object
    std::shared_ptr<SharedRegion> memory;  // of a foreign object null before it is confirmed
    bool complete = false;                 // the object had all of its memory, and it is to be mapped at once
  };

  absl::Status Check(const Region& region, const std::string& prefix) const;
  absl::StatusOr<std::shared_ptr<SharedRegion>> Map(const SharedMemory& object, const Region& region) const;
  absl::StatusOr<std::shared_ptr<SharedRegion>> OpenForeign(const Entry& entry) const;
  void RemoveAll();

  RegionTable& table_;
  const std::string prefix_;
  const std::string client_;
  const std::string foreign_prefix_;
  std::string own_prefix_;  // empty: nobody has asked
  std::map<std::string, Entry> entries_;
};

}  // namespace kvcompress
