#pragma once

#include <nanobind/nanobind.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

// What forks, and the end of the interpreter, ask of those who work without the GIL.
namespace kvcompress {

// Raises what the package raises for such a status.
[[noreturn]] void Raise(const absl::Status& status);

// Has absl measure now what its mutexes ask for as soon as two threads wait at one, which takes milliseconds: a child
// of a fork in the middle of that would wait for ever. And has them look for no deadlocks, as a build of absl with
// assertions does, in a graph of all mutexes with a lock of its own: gRPC's, too, are such mutexes.
void PrepareMutexes();

// Destroys nothing in a child of a fork: destructors would wait for threads that are not there.
template <typename T>
struct DeleteInOwnProcess {
  pid_t process = getpid();
  void operator()(T* object) const {
    if (process == getpid()) delete object;
  }
};
template <typename T>
using OfProcess = std::unique_ptr<T, DeleteInOwnProcess<T>>;

// The threads of one process that work without the GIL. The interpreter waits for them at its end: none could go back
// into it later.
class Threads {
 public:
  // Of this process. Needs the GIL, but where the thread is Away.
  static Threads& Own();

  bool ends() const { return ends_; }
  // From now on nobody leaves the interpreter. Waits for those who have, who see that it ends; whoever takes longer
  // stays where it is, for good.
  void End(absl::Duration patience);

 private:
  friend class Away;
  void Enter();
  void BeforeReturn();
  void Leave();

  const pid_t process_ = getpid();
  std::atomic<bool> ends_ = false;
  absl::Mutex mutex_;
  int away_ ABSL_GUARDED_BY(mutex_) = 0;
  bool is_over_ ABSL_GUARDED_BY(mutex_) = false;  // nobody returns any more
};

// While a thread works without the GIL.
class Away {
 public:
  Away();
  ~Away();
  Away(const Away&) = delete;
  Away& operator=(const Away&) = delete;

 private:
  Threads& threads_ = Threads::Own();
  std::optional<nanobind::gil_scoped_release> release_;
};

}  // namespace kvcompress
