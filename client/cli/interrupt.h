#pragma once

#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "core/base/file.h"

namespace kvcompress {

// Ends the process on SIGINT, SIGTERM, SIGHUP, SIGQUIT and SIGXCPU, whatever its threads do at that moment: removes the
// temporary file and keys of shared memory, and exits with 128 + the signal's number. A thread waits for the signals,
// so nothing runs in a handler.
class Interrupts {
 public:
  // Call it before any other thread is started: threads must inherit that these signals are blocked. A signal that the
  // parent ignores (nohup) stays ignored. This object must live as long as the process. RESOURCE_EXHAUSTED without a
  // thread.
  absl::Status Start();

  // AtomicFile::Create; remembers the temporary file.
  absl::StatusOr<std::unique_ptr<AtomicFile>> CreateFile(const std::string& path);

 private:
  [[noreturn]] void Wait();

  absl::Mutex mutex_;
  std::string temporary_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvcompress
