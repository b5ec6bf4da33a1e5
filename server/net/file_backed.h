#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "core/base/status_macros.h"
#include "server/telemetry/log.h"

// Settings that live in files which others replace while the daemon runs: certificates, tokens.
namespace kvcompress {

// A text that is another one after each change of a file.
std::string StateOfFiles(const std::vector<std::string>& paths);

// Whether one of the files has changed in the last second: somebody may still be writing it.
bool HaveJustChanged(const std::vector<std::string>& paths);

// The contents of each file. NOT_FOUND "FILE: why" for the first that cannot be read or is larger than 1 MiB.
absl::StatusOr<std::vector<std::string>> ReadFiles(const std::vector<std::string>& paths);

// A value that is made of the contents of files, and made again when one of them changes. Thread-safe.
template <typename T>
class FileBacked {
 public:
  // Makes the value of the contents, in the order of the paths; its errors must not quote them.
  using Make = std::function<absl::StatusOr<T>(const std::vector<std::string>& contents)>;

  // `what` names the value in the log and in errors. NOT_FOUND for a file that cannot be read; else the error of
  // `make`.
  static absl::StatusOr<std::unique_ptr<FileBacked>> Load(std::string what, std::vector<std::string> paths, Make make) {
    std::unique_ptr<FileBacked> backed(new FileBacked(std::move(what), std::move(paths), std::move(make)));
    absl::MutexLock lock(&backed->mutex_);
    const absl::Status status = backed->Read();
    if (absl::IsNotFound(status))
      return absl::NotFoundError(absl::StrFormat("%s: %s", backed->what_, status.message()));
    if (!status.ok()) return status;
    return backed;
  }

  // The latest value that could be made. Looks at the files once a second at most, and leaves a change of the last
  // second to the next look. A change that gives no value is logged once; the value before it stays.
  std::shared_ptr<const T> Get() {
    absl::MutexLock lock(&mutex_);
    if (Clock::now() - looked_ < std::chrono::seconds(1)) return value_;
    looked_ = Clock::now();
    const std::string state = StateOfFiles(paths_);
    if (state == state_ || (std::exchange(seen_, state) != state && HaveJustChanged(paths_))) return value_;
    const absl::Status status = Read();
    const std::string error(status.message());
    if (status.ok()) {
      Log(LogLevel::kInfo, what_ + " read again");
    } else if (logged_ != state + error) {
      Log(LogLevel::kWarning, what_ + " cannot be read again, what was read before stays in use", {{"error", error}});
    }
    logged_ = state + error;
    return value_;
  }

 private:
  using Clock = std::chrono::steady_clock;

  FileBacked(std::string what, std::vector<std::string> paths, Make make)
      : what_(std::move(what)), paths_(std::move(paths)), make_(std::move(make)) {}

  absl::Status Read() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    looked_ = Clock::now();
    std::string state = StateOfFiles(paths_);  // before the contents: the next look sees changes in between
    // The next look tries again to read a file that cannot be read, perhaps for want of a descriptor.
    KVC_ASSIGN_OR_RETURN(const std::vector<std::string> contents, ReadFiles(paths_));
    state_ = std::move(state);
    KVC_ASSIGN_OR_RETURN(T value, make_(contents));
    value_ = std::make_shared<const T>(std::move(value));
    return absl::OkStatus();
  }

  const std::string what_;
  const std::vector<std::string> paths_;
  const Make make_;
  absl::Mutex mutex_;
  Clock::time_point looked_ ABSL_GUARDED_BY(mutex_);
  std::string state_ ABSL_GUARDED_BY(mutex_);   // of the files when they were last read
  std::string seen_ ABSL_GUARDED_BY(mutex_);    // the last other state that a look found
  std::string logged_ ABSL_GUARDED_BY(mutex_);  // the state and the error of the last attempt to read them again
  std::shared_ptr<const T> value_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvcompress
