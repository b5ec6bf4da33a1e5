#include "core/base/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <set>
#include <system_error>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "core/base/size_text.h"
#include "core/base/status_macros.h"
#include "core/base/system_call.h"

namespace kvcompress {
namespace {

constexpr char kFolder[] = "/dev/shm";  // where shm_open has its objects
constexpr size_t kMaxNameBytes = 255;
constexpr int64_t kStatBlockBytes = 512;

// Keys that this process has made and not removed. Global, because what ends the process wants all of them.
struct Keys {
  absl::Mutex mutex;
  std::set<std::string> linked ABSL_GUARDED_BY(mutex);
};
Keys& keys = *new Keys;

uint64_t PageBytes() { return static_cast<uint64_t>(sysconf(_SC_PAGESIZE)); }

absl::Status CheckKey(const std::string& key) {
  const bool valid = key.size() >= 2 && key.size() <= 1 + kMaxNameBytes && key[0] == '/' &&
                     key.find('/', 1) == std::string::npos && key.find('\0') == std::string::npos && key != "/." &&
                     key != "/..";
  if (valid) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "a shared memory key is \"/\" and a name of 1 to 255 bytes without a further \"/\"");
}

}  // namespace

SharedMapping& SharedMapping::operator=(SharedMapping&& other) noexcept {
  if (this != &other) {
    Unmap();
    pages_ = std::exchange(other.pages_, {});
    bytes_ = std::exchange(other.bytes_, {});
    is_writable_ = other.is_writable_;
  }
  return *this;
}

void SharedMapping::Unmap() {
  if (!pages_.empty()) munmap(pages_.data(), pages_.size());
}

SharedMemory& SharedMemory::operator=(SharedMemory&& other) noexcept {
  if (this != &other) {
    std::swap(key_, other.key_);
    std::swap(fd_, other.fd_);
    std::swap(access_, other.access_);
    std::swap(made_, other.made_);
    std::swap(linked_, other.linked_);
    std::swap(complete_, other.complete_);
  }
  return *this;
}

SharedMemory::~SharedMemory() {
  Unlink();
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<SharedMemory> SharedMemory::Create(const std::string& key, uint64_t size) {
  KVC_RETURN_IF_ERROR(CheckKey(key));
  if (size == 0 || size > static_cast<uint64_t>(std::numeric_limits<off_t>::max())) {
    return absl::InvalidArgumentError(absl::StrCat("create shared memory ", key, ": no object has ", size, " bytes"));
  }
  SharedMemory object(key);
  object.made_ = true;
  // The key comes last: what ends this process while the memory is made leaves nothing. Where the system cannot do so
  // it comes first.
  object.fd_ = RetryOnEintr([] { return open(kFolder, O_TMPFILE | O_RDWR | O_CLOEXEC, S_IRUSR | S_IWUSR); });
  if (object.fd_ < 0) KVC_RETURN_IF_ERROR(object.OpenNew());
  int error = EINTR;
  while (error == EINTR) error = posix_fallocate(object.fd_, 0, static_cast<off_t>(size));
  if (error == ENOSPC) {
    return absl::ResourceExhaustedError(absl::StrCat("create shared memory ", key,
                                                     ": no space left on device: ", kFolder, " has no room for ",
                                                     SizeText(size), ": Docker's --shm-size gives more"));
  }
  if (error != 0) return ErrnoError("create shared memory", key, error);
  if (!object.linked_) KVC_RETURN_IF_ERROR(object.Link());
  object.complete_ = true;
  return object;
}

absl::Status SharedMemory::OpenNew() {
  absl::MutexLock lock(&keys.mutex);
  fd_ = RetryOnEintr([&] { return shm_open(key_.c_str(), O_RDWR | O_CREAT | O_EXCL, S_IRUSR | S_IWUSR); });
  if (fd_ < 0) return ErrnoError("create shared memory", key_, errno);
  keys.linked.insert(key_);
  linked_ = true;
  return absl::OkStatus();
}

absl::Status SharedMemory::Link() {
  const std::string nameless = absl::StrCat("/proc/self/fd/", fd_);
  const std::string path = absl::StrCat(kFolder, key_);
  absl::MutexLock lock(&keys.mutex);
  if (linkat(AT_FDCWD, nameless.c_str(), AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW) != 0) {
    return ErrnoError("create shared memory", key_, errno);
  }
  keys.linked.insert(key_);
  linked_ = true;
  return absl::OkStatus();
}

absl::StatusOr<SharedMemory> SharedMemory::Open(const std::string& key, Access access) {
  KVC_RETURN_IF_ERROR(CheckKey(key));
  SharedMemory object(key);
  object.access_ = access;
  const int flags = (access == Access::kRead ? O_RDONLY : O_RDWR) | O_NONBLOCK;
  object.fd_ = RetryOnEintr([&] { return shm_open(key.c_str(), flags, 0); });  // does not follow links
  if (object.fd_ < 0) return ErrnoError("open shared memory", key, errno);
  struct stat info, folder;
  if (fstat(object.fd_, &info) != 0 || stat(kFolder, &folder) != 0) {
    return ErrnoError("open shared memory", key, errno);
  }
  if (!S_ISREG(info.st_mode) || info.st_dev != folder.st_dev) {
    return absl::FailedPreconditionError(absl::StrCat("open shared memory ", key, ": not a shared memory object"));
  }
  object.complete_ = info.st_blocks * kStatBlockBytes >= info.st_size;
  return object;
}

absl::StatusOr<uint64_t> SharedMemory::Size() const {
  struct stat info;
  if (fstat(fd_, &info) != 0) return ErrnoError("stat shared memory", key_, errno);
  return static_cast<uint64_t>(info.st_size);
}

absl::StatusOr<SharedMapping> SharedMemory::Map(uint64_t offset, uint64_t size) const {
  KVC_ASSIGN_OR_RETURN(const uint64_t have, Size());
  if (size == 0 || offset > have || size > have - offset) {
    return absl::OutOfRangeError(absl::StrCat("map shared memory ", key_, ": ", size, " bytes at ", offset,
                                              " of an object of ", have, " bytes"));
  }
  const uint64_t page = PageBytes();
  const uint64_t before = offset % page;
  const size_t length = (before + size + page - 1) / page * page;
  const bool is_writable = access_ == Access::kReadWrite;
  const int protection = is_writable ? PROT_READ | PROT_WRITE : PROT_READ;
  void* at = mmap(nullptr, length, protection, MAP_SHARED, fd_, static_cast<off_t>(offset - before));
  if (at == MAP_FAILED) return ErrnoError("map shared memory", key_, errno);
  const MutableByteSpan pages(static_cast<std::byte*>(at), length);
  if (made_) MapPagesNow(pages);
  return SharedMapping(pages, pages.subspan(before, size), is_writable);
}

absl::StatusOr<bool> SharedMemory::IsWriteLocked(uint64_t offset) const {
  struct flock lock {};
  lock.l_type = F_RDLCK;  // which write locks alone are in the way of
  lock.l_whence = SEEK_SET;
  lock.l_start = static_cast<off_t>(offset);
  lock.l_len = 1;
  if (fcntl(fd_, F_OFD_GETLK, &lock) != 0) return ErrnoError("lock shared memory", key_, errno);
  return lock.l_type == F_WRLCK && static_cast<uint64_t>(lock.l_start) == offset && lock.l_len == 1;
}

uint64_t SharedMemoryCapacity() {
  struct statvfs info;
  if (statvfs(kFolder, &info) == 0 && info.f_blocks > 0) return uint64_t{info.f_blocks} * info.f_frsize;
  return static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * PageBytes();
}

void MapPagesNow(MutableByteSpan bytes) {
  // In parts: while one is at work nobody else in the process can map or unmap anything.
  constexpr size_t kPartBytes = size_t{64} << 20;
  const size_t before = reinterpret_cast<uintptr_t>(bytes.data()) % PageBytes();
  std::byte* at = bytes.data() - before;
  for (size_t left = bytes.size() + before; left > 0;) {
    const size_t part = std::min(left, kPartBytes);
    // Reading is enough: pages of shared memory are mapped for writing as well. Linux before 5.14 cannot, and maps each
    // page when it is touched.
    if (madvise(at, part, MADV_POPULATE_READ) != 0) return;
    at += part;
    left -= part;
  }
}

void SharedMemory::Unlink() {
  if (!std::exchange(linked_, false)) return;
  absl::MutexLock lock(&keys.mutex);
  shm_unlink(key_.c_str());
  keys.linked.erase(key_);
}

void SharedMemory::UnlinkAllForGood() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  keys.mutex.Lock();  // and never unlocks it
  for (const std::string& key : keys.linked) shm_unlink(key.c_str());
}

void RemoveSharedMemory(std::string_view prefix) {
  std::error_code error;
  std::vector<std::string> left;
  for (std::filesystem::directory_iterator entry(kFolder, error), end; !error && entry != end; entry.increment(error)) {
    std::string name = entry->path().filename().native();
    if (name.starts_with(prefix)) left.push_back(std::move(name));
  }
  for (const std::string& name : left) shm_unlink(absl::StrCat("/", name).c_str());
}

}  // namespace kvcompress
