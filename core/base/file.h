#pragma once

#include <cstdint>
#include <ctime>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/byte_source.h"

namespace kvcompress {

// Errors of this header read "open FILE: no such file or directory": the operation, the path as it was given, and the
// system's text in lower case, as Go prints them. Their codes are ErrnoCode's (core/base/system_call.h): NOT_FOUND,
// PERMISSION_DENIED, RESOURCE_EXHAUSTED for a full disk, FAILED_PRECONDITION for a folder, ...

// A regular file, read with pread: a file that is truncated under us gives an error, never a signal, and one larger
// than memory costs no memory. Anything else at `path` is refused: "open FILE: not a regular file".
class FileSource final : public ByteSource {
 public:
  FileSource(const FileSource&) = delete;
  FileSource& operator=(const FileSource&) = delete;
  static absl::StatusOr<std::unique_ptr<FileSource>> Open(const std::string& path);
  ~FileSource() override;

  uint64_t size() const override { return size_; }
  absl::StatusOr<ByteSpan> Get(uint64_t offset, size_t count, std::vector<std::byte>& scratch) const override;
  // DATA_LOSS when somebody has written to the file since it was opened, as far as its size and time tell.
  absl::Status CheckUnchanged() const;

 private:
  FileSource(int fd, uint64_t size, std::string path) : fd_(fd), size_(size), path_(std::move(path)) {}

  int fd_;
  uint64_t size_;
  timespec modified_ = {};
  std::string path_;
};

// A part of another source, which must hold it and outlive this one: one tensor of a file.
class SubSource final : public ByteSource {
 public:
  SubSource(const ByteSource& whole, uint64_t offset, uint64_t size) : whole_(whole), offset_(offset), size_(size) {}

  uint64_t size() const override { return size_; }
  absl::StatusOr<ByteSpan> Get(uint64_t offset, size_t count, std::vector<std::byte>& scratch) const override;

 private:
  const ByteSource& whole_;
  uint64_t offset_;
  uint64_t size_;
};

// A file that appears whole or not at all: written under a temporary name in the same folder, synced, renamed over
// `path` by Commit(). Without Commit() the temporary is removed, and one that a killed process left is by the next
// Create() for the same path; a lock (flock) tells that its process lives. Takes the mode of a file that it replaces,
// which must be writable, and follows a symbolic link at `path`. A character device (/dev/null) is written in place;
// folders, pipes, sockets and the links in /proc (/dev/stdout) are refused.
class AtomicFile {
 public:
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  static absl::StatusOr<std::unique_ptr<AtomicFile>> Create(const std::string& path);
  ~AtomicFile();

  // May be called by many threads for disjoint ranges.
  absl::Status WriteAt(uint64_t offset, ByteSpan bytes);

  // Tells the kernel to begin writing [0, offset) to the disk, so that Commit() has less to wait for. One thread at a
  // time.
  void StartWriteback(uint64_t offset);

  // Once, after everything was written. On an error `path` is what it was before, except when syncing the folder failed
  // ("sync FOLDER: ..."): then the new file is in place, but may not survive a crash of the machine.
  absl::Status Commit();

  // The temporary's path, for a signal handler that must unlink it; never changes. Empty for a device.
  const std::string& temporary_path() const { return temporary_; }

 private:
  AtomicFile(int fd, std::string path, std::string target, std::string temporary)
      : fd_(fd), path_(std::move(path)), target_(std::move(target)), temporary_(std::move(temporary)) {}

  int fd_;
  std::string path_;       // as given, for messages
  std::string target_;     // with symbolic links resolved
  std::string temporary_;  // empty: written in place
  bool renamed_ = false;
  uint64_t writeback_started_ = 0;
};

}  // namespace kvcompress
