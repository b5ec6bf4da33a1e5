#include "core/base/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <filesystem>
#include <random>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"
#include "core/base/system_call.h"

namespace kvcompress {
namespace {

namespace fs = std::filesystem;

absl::Status NotRegular(absl::string_view path) {
  return absl::FailedPreconditionError(absl::StrCat("open ", path, ": not a regular file"));
}

// The folder of `path`, "." when it names none.
fs::path FolderOf(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

// What `path` names after its last symbolic link, which may dangle.
absl::StatusOr<fs::path> FollowLinks(const std::string& path) {
  constexpr int kMaxHops = 40;  // the kernel's limit
  fs::path target = path;
  for (int hop = 0; hop <= kMaxHops; ++hop) {
    std::error_code error;
    const fs::path link = fs::read_symlink(target, error);
    if (error) return target;
    // Links in /proc name what is already open: the file behind standard output is not ours to replace.
    if (fs::canonical(FolderOf(target), error).native().starts_with("/proc/")) return NotRegular(path);
    target = target.parent_path() / link;
  }
  return ErrnoError("open", path, ELOOP);
}

void CloseFd(int& fd) {
  if (fd >= 0) close(fd);
  fd = -1;
}

// What the names of all temporaries of one target begin with. Their length does not depend on the target's name, which
// may be as long as a name can be.
std::string TemporaryPrefix(const fs::path& target) {
  const std::string name = target.filename().native();
  return absl::StrFormat(".kvcompress-%016x-", XXH3_64bits(name.data(), name.size()));
}

// Removes the temporaries that processes which were killed have left for this target. Those that a process still
// writes are locked by it.
void RemoveLeftovers(const fs::path& folder, const std::string& prefix) {
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    const std::string name = at->path().filename().native();
    if (!name.starts_with(prefix) || !name.ends_with(".tmp")) continue;
    int fd = RetryOnEintr([&] { return open(at->path().c_str(), O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC); });
    struct stat info;
    const bool ours = fd >= 0 && fstat(fd, &info) == 0 && S_ISREG(info.st_mode) &&
                      (info.st_uid == geteuid() || geteuid() == 0) && flock(fd, LOCK_EX | LOCK_NB) == 0;
    if (ours) unlink(at->path().c_str());
    CloseFd(fd);
  }
}

// Whether the new file is this process's alone, and still there: another one may have taken it for a leftover. Where
// the file system has no locks nobody does.
bool Claim(int fd) {
  struct stat info;
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) return errno != EWOULDBLOCK;
  return fstat(fd, &info) != 0 || info.st_nlink > 0;
}

// A new file in `folder`, locked, with the mode that the umask gives.
absl::StatusOr<std::pair<int, std::string>> OpenTemporary(const fs::path& folder, const std::string& prefix,
                                                          const std::string& path) {
  constexpr int kAttempts = 100;
  std::random_device random;
  for (int i = 0; i < kAttempts; ++i) {
    const std::string name = (folder / absl::StrFormat("%s%08x.tmp", prefix, random())).native();
    int fd = RetryOnEintr([&] { return open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666); });
    if (fd < 0 && errno != EEXIST) return ErrnoError("open", path, errno);
    if (fd >= 0 && Claim(fd)) return std::pair(fd, name);
    CloseFd(fd);
  }
  return ErrnoError("open", path, EEXIST);
}

}  // namespace

absl::StatusOr<std::unique_ptr<FileSource>> FileSource::Open(const std::string& path) {
  // O_NONBLOCK: opening a pipe must not wait for its writer. It means nothing to a regular file.
  const int fd = RetryOnEintr([&] { return open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); });
  if (fd < 0) return ErrnoError("open", path, errno);
  std::unique_ptr<FileSource> source(new FileSource(fd, 0, path));
  struct stat info;
  if (fstat(fd, &info) != 0) return ErrnoError("stat", path, errno);
  if (S_ISDIR(info.st_mode)) return ErrnoError("read", path, EISDIR);
  if (!S_ISREG(info.st_mode)) return NotRegular(path);
  source->size_ = static_cast<uint64_t>(info.st_size);
  source->modified_ = info.st_mtim;
  return source;
}

absl::Status FileSource::CheckUnchanged() const {
  struct stat info;
  if (fstat(fd_, &info) != 0) return ErrnoError("stat", path_, errno);
  if (static_cast<uint64_t>(info.st_size) == size_ && info.st_mtim.tv_sec == modified_.tv_sec &&
      info.st_mtim.tv_nsec == modified_.tv_nsec) {
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat("read ", path_, ": the file changed while it was read"));
}

FileSource::~FileSource() { CloseFd(fd_); }

absl::StatusOr<ByteSpan> FileSource::Get(uint64_t offset, size_t count, std::vector<std::byte>& scratch) const {
  if (offset > size_ || count > size_ - offset) {
    return absl::OutOfRangeError(absl::StrCat("read ", path_, ": past the end of the file"));
  }
  scratch.resize(count);
  for (size_t done = 0; done < count;) {
    const ssize_t got = RetryOnEintr(
        [&] { return pread(fd_, scratch.data() + done, count - done, static_cast<off_t>(offset + done)); });
    if (got < 0) return ErrnoError("read", path_, errno);
    if (got == 0) {
      return absl::DataLossError(absl::StrCat("read ", path_, ": the file became shorter while it was read"));
    }
    done += static_cast<size_t>(got);
  }
  return ByteSpan(scratch);
}

absl::StatusOr<ByteSpan> SubSource::Get(uint64_t offset, size_t count, std::vector<std::byte>& scratch) const {
  if (offset > size_ || count > size_ - offset) return absl::OutOfRangeError("read past the end of the tensor");
  return whole_.Get(offset_ + offset, count, scratch);
}

absl::StatusOr<std::unique_ptr<AtomicFile>> AtomicFile::Create(const std::string& path) {
  struct stat info;
  const bool exists = stat(path.c_str(), &info) == 0;
  if (!exists && errno != ENOENT) return ErrnoError("open", path, errno);
  if (exists && S_ISDIR(info.st_mode)) return ErrnoError("open", path, EISDIR);
  if (exists && S_ISCHR(info.st_mode)) {
    const int fd = RetryOnEintr([&] { return open(path.c_str(), O_WRONLY | O_CLOEXEC); });
    if (fd < 0) return ErrnoError("open", path, errno);
    return std::unique_ptr<AtomicFile>(new AtomicFile(fd, path, path, ""));
  }
  if (exists && !S_ISREG(info.st_mode)) return NotRegular(path);
  KVC_ASSIGN_OR_RETURN(const fs::path target, FollowLinks(path));
  if (target.filename().empty()) return ErrnoError("open", path, target.empty() ? ENOENT : EISDIR);
  // A rename would replace a file that its owner protected from writing.
  if (exists && faccessat(AT_FDCWD, target.c_str(), W_OK, AT_EACCESS) != 0) return ErrnoError("open", path, errno);

  const std::string prefix = TemporaryPrefix(target);
  RemoveLeftovers(FolderOf(target), prefix);
  KVC_ASSIGN_OR_RETURN(auto temporary, OpenTemporary(FolderOf(target), prefix, path));
  std::unique_ptr<AtomicFile> file(new AtomicFile(temporary.first, path, target.native(), std::move(temporary.second)));
  if (exists) {
    // Root keeps the owner; who may not, must not pass set-user-ID on to another one.
    const bool owned = fchown(file->fd_, info.st_uid, info.st_gid) == 0;
    if (fchmod(file->fd_, info.st_mode & (owned ? 07777 : 0777)) != 0) return ErrnoError("chmod", path, errno);
  }
  return file;
}

AtomicFile::~AtomicFile() {
  CloseFd(fd_);
  if (!temporary_.empty() && !renamed_) unlink(temporary_.c_str());
}

absl::Status AtomicFile::WriteAt(uint64_t offset, ByteSpan bytes) {
  while (!bytes.empty()) {
    const ssize_t put =
        RetryOnEintr([&] { return pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset)); });
    if (put <= 0) return ErrnoError("write", path_, put < 0 ? errno : EIO);
    bytes = bytes.subspan(static_cast<size_t>(put));
    offset += static_cast<uint64_t>(put);
  }
  return absl::OkStatus();
}

void AtomicFile::StartWriteback(uint64_t offset) {
  if (offset <= writeback_started_) return;
  // Only a hint: Commit() syncs everything, and reports what goes wrong.
  sync_file_range(fd_, static_cast<off_t>(writeback_started_), static_cast<off_t>(offset - writeback_started_),
                  SYNC_FILE_RANGE_WRITE);
  writeback_started_ = offset;
}

absl::Status AtomicFile::Commit() {
  if (temporary_.empty()) return absl::OkStatus();
  if (RetryOnEintr([&] { return fsync(fd_); }) != 0) return ErrnoError("sync", path_, errno);
  // Holds the lock until the temporary has its final name.
  int lock = fcntl(fd_, F_DUPFD_CLOEXEC, 0);
  // Some network file systems tell of a failed write only here.
  const bool closed = close(std::exchange(fd_, -1)) == 0 || errno == EINTR;
  const int close_error = errno;
  renamed_ = closed && rename(temporary_.c_str(), target_.c_str()) == 0;
  const int rename_error = errno;
  CloseFd(lock);
  if (!closed) return ErrnoError("close", path_, close_error);
  if (!renamed_) return ErrnoError("rename", path_, rename_error);

  const std::string folder = FolderOf(target_).native();
  // A folder that may be written but not read cannot be synced; nor can those of some file systems (EINVAL).
  int folder_fd = RetryOnEintr([&] { return open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
  if (folder_fd < 0) return absl::OkStatus();
  const int error = RetryOnEintr([&] { return fsync(folder_fd); }) == 0 ? 0 : errno;
  CloseFd(folder_fd);
  return error == 0 || error == EINVAL ? absl::OkStatus() : ErrnoError("sync", folder, error);
}

}  // namespace kvcompress
