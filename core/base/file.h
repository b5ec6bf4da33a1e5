#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvcompress/base/byte_source.h"

namespace kvcompress {

// A regular file, read with pread: a file that is truncated under us gives an error, never a signal, and one larger
// than memory costs no memory. Errors read "open FILE: no such file or directory", with the system's text in lower case
// as Go prints it.
class FileSource final : public ByteSource {
 public:
  static absl::StatusOr<std::unique_ptr<FileSource>> Open(const std::string& path);
  ~FileSource() override;

  uint64_t size() const override { return size_; }
  absl::StatusOr<ByteSpan> Get(uint64_t offset, size_t count, std::vector<std::byte>& scratch) const override;

 private:
  FileSource(int fd, uint64_t size, std::string path) : fd_(fd), size_(size), path_(std::move(path)) {}

  int fd_;
  uint64_t size_;
  std::string path_;
};

// A part of another source: one tensor of a file.
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
// `path` by Commit(). Without Commit() the temporary is removed. Takes the mode of a file that it replaces, and follows
// a symbolic link at `path`. WriteAt may be called by many threads for disjoint ranges.
class AtomicFile {
 public:
  static absl::StatusOr<std::unique_ptr<AtomicFile>> Create(const std::string& path);
  ~AtomicFile();

  absl::Status WriteAt(uint64_t offset, ByteSpan bytes);

  // Tells the kernel to begin writing [0, offset) to the disk, so that Commit() has less to wait for.
  void StartWriteback(uint64_t offset);

  absl::Status Commit();

  // The temporary's path, for a signal handler that must unlink it.
  const std::string& temporary_path() const { return temporary_; }

 private:
  AtomicFile(int fd, std::string path, std::string temporary)
      : fd_(fd), path_(std::move(path)), temporary_(std::move(temporary)) {}

  int fd_;
  std::string path_;
  std::string temporary_;
  uint64_t writeback_started_ = 0;
};

}  // namespace kvcompress
