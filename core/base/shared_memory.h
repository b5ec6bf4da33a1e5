#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"
#include "core/base/bytes.h"

namespace kvcompress {

// A part of a shared-memory object in this process's memory, until it is destroyed: readable, and writable unless the
// object was opened for reading. Whoever has the object may change the bytes at any time, and may cut the object short:
// a page that is gone raises SIGBUS.
class SharedMapping {
 public:
  SharedMapping() = default;
  SharedMapping(SharedMapping&& other) noexcept { *this = std::move(other); }
  SharedMapping& operator=(SharedMapping&& other) noexcept;
  ~SharedMapping() { Unmap(); }

  MutableByteSpan bytes() const { return bytes_; }
  // The pages that hold them.
  MutableByteSpan pages() const { return pages_; }
  bool is_writable() const { return is_writable_; }

 private:
  friend class SharedMemory;
  SharedMapping(MutableByteSpan pages, MutableByteSpan bytes, bool is_writable)
      : pages_(pages), bytes_(bytes), is_writable_(is_writable) {}
  void Unmap();

  MutableByteSpan pages_;
  MutableByteSpan bytes_;
  bool is_writable_ = true;
};

// A POSIX shared-memory object. Its key is that of shm_open(3): "/" and a name of 1 to 255 bytes without a further "/".
// Errors read "open shared memory KEY: no such file or directory"; codes are ErrnoCode's.
class SharedMemory {
 public:
  enum class Access { kRead, kReadWrite };

  SharedMemory(SharedMemory&& other) noexcept { *this = std::move(other); }
  SharedMemory& operator=(SharedMemory&& other) noexcept;
  ~SharedMemory();

  // Makes an object of `size` zero bytes that only this user can open, and removes its key when it is destroyed. All
  // its memory is there from the start: RESOURCE_EXHAUSTED now, rather than SIGBUS later, where there is not enough.
  // ALREADY_EXISTS when the key is taken.
  static absl::StatusOr<SharedMemory> Create(const std::string& key, uint64_t size);
  // INVALID_ARGUMENT for what cannot be a key, NOT_FOUND, PERMISSION_DENIED without that access, FAILED_PRECONDITION
  // for what is not an object of /dev/shm: a link, a FIFO, a file of another filesystem.
  static absl::StatusOr<SharedMemory> Open(const std::string& key, Access access = Access::kReadWrite);

  const std::string& key() const { return key_; }

  // Bytes of the object at this moment.
  absl::StatusOr<uint64_t> Size() const;

  // Whether somebody holds a write lock (fcntl(2)) of the byte at `offset` and of no other beside it. Locks need no
  // bytes: the object may end before. Only who has opened the object for writing can take one.
  absl::StatusOr<bool> IsWriteLocked(uint64_t offset) const;

  // Whether all memory of the object was there when it was made or opened; an object without a part of it (a sparse
  // file) gets that when it is touched.
  bool complete() const { return complete_; }

  // OUT_OF_RANGE for what the object does not have at this moment. The mapping stays when the object is destroyed. Of
  // an object made here the pages are mapped at once (MapPagesNow).
  absl::StatusOr<SharedMapping> Map(uint64_t offset, uint64_t size) const;

  // Removes the key, which nobody can open from then on; those who have the object keep it. A process that unlinks its
  // object once its peer has opened it leaves nothing behind when it is killed. Does nothing the second time.
  void Unlink();

  // Removes the keys of all objects that this process has made, and lets it make no more: for whoever ends the process
  // while other threads go on.
  static void UnlinkAllForGood();

 private:
  explicit SharedMemory(std::string key) : key_(std::move(key)) {}
  absl::Status OpenNew();
  absl::Status Link();

  std::string key_;
  int fd_ = -1;
  Access access_ = Access::kReadWrite;
  bool made_ = false;    // by Create
  bool linked_ = false;  // a key of ours, to be removed
  bool complete_ = false;
};

// Removes all keys "/PREFIX...", whoever made them, where this user may.
void RemoveSharedMemory(std::string_view prefix);

// The bytes that all objects of this machine can have together: those of /dev/shm, or of the machine's memory where
// that has no limit or cannot be asked.
uint64_t SharedMemoryCapacity();

// Maps the pages of `bytes`, which are a part of a SharedMapping's, many at a time rather than each when it is first
// written: about four times as fast. Only for memory that is there; what is missing would be made.
void MapPagesNow(MutableByteSpan bytes);

}  // namespace kvcompress
