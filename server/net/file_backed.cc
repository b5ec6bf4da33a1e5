#include "server/net/file_backed.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace kvcompress {
namespace {

constexpr size_t kMaxFileBytes = size_t{1} << 20;

absl::Status CannotRead(const std::string& path, std::string_view why) {
  return absl::NotFoundError(absl::StrFormat("%s: %s", path, why));
}

absl::Status CannotRead(const std::string& path, int error) {
  return CannotRead(path, absl::AsciiStrToLower(std::generic_category().message(error)));
}

absl::StatusOr<std::string> ReadWhole(const std::string& path) {
  // O_NONBLOCK: a pipe must not make us wait for its writer.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return CannotRead(path, errno);
  std::string text(kMaxFileBytes + 1, '\0');
  size_t size = 0;
  ssize_t got = 0;
  while (size < text.size() && (got = read(fd, text.data() + size, text.size() - size)) > 0) {
    size += static_cast<size_t>(got);
  }
  const int error = got < 0 ? errno : 0;
  close(fd);
  if (error != 0) return CannotRead(path, error);
  if (size > kMaxFileBytes) return CannotRead(path, "larger than 1 MiB");
  text.resize(size);
  return text;
}

}  // namespace

std::string StateOfFiles(const std::vector<std::string>& paths) {
  std::string state;
  for (const std::string& path : paths) {
    struct stat info {};
    const int error = stat(path.c_str(), &info) == 0 ? 0 : errno;
    absl::StrAppendFormat(&state, "%d %d %d %d %d.%d %d.%d\n", error, info.st_dev, info.st_ino, info.st_size,
                          info.st_mtim.tv_sec, info.st_mtim.tv_nsec, info.st_ctim.tv_sec, info.st_ctim.tv_nsec);
  }
  return state;
}

bool HaveJustChanged(const std::vector<std::string>& paths) {
  return std::any_of(paths.begin(), paths.end(), [](const std::string& path) {
    struct stat info {};
    if (stat(path.c_str(), &info) != 0) return false;
    const absl::Duration age = absl::Now() - absl::TimeFromTimespec(info.st_ctim);
    return age > -absl::Seconds(1) && age < absl::Seconds(1);
  });
}

absl::StatusOr<std::vector<std::string>> ReadFiles(const std::vector<std::string>& paths) {
  std::vector<std::string> contents;
  for (const std::string& path : paths) {
    KVC_ASSIGN_OR_RETURN(std::string text, ReadWhole(path));
    contents.push_back(std::move(text));
  }
  return contents;
}

}  // namespace kvcompress
