#pragma once

#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "core/base/file.h"

namespace kvcompress {

// Ends the process on SIGINT, SIGTERM and SIGHUP, whatever its threads do at that moment, with 128 + the signal's
// number, and without leaving a temporary file. A thread waits for the signals, so nothing runs inside a handler.
class Interrupts {
 public:
  // Before any other thread is started: they must inherit that these signals are blocked. A signal that the parent
  // ignores (nohup) stays ignored.
  Interrupts();

  // AtomicFile::Create, and the temporary is remembered.
  absl::StatusOr<std::unique_ptr<AtomicFile>> CreateFile(const std::string& path);

 private:
  [[noreturn]] void Wait();

  absl::Mutex mutex_;
  std::string temporary_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvcompress
