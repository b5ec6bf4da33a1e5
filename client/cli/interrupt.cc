#include "client/cli/interrupt.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <thread>

#include "core/base/shared_memory.h"
#include "core/base/status_macros.h"
#include "core/base/thread.h"

namespace kvcompress {
namespace {

sigset_t EndingSignals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGXCPU}) {
    struct sigaction action;
    if (sigaction(signal, nullptr, &action) == 0 && action.sa_handler != SIG_IGN) sigaddset(&set, signal);
  }
  return set;
}

}  // namespace

absl::Status Interrupts::Start() {
  // A write beyond the limit on file sizes, or to a reader that has gone, then fails with an error.
  signal(SIGXFSZ, SIG_IGN);
  signal(SIGPIPE, SIG_IGN);
  const sigset_t set = EndingSignals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  KVC_ASSIGN_OR_RETURN(std::thread thread, StartThread([this] { Wait(); }));
  thread.detach();
  return absl::OkStatus();
}

void Interrupts::Wait() {
  const sigset_t set = EndingSignals();
  int signal = 0;
  while (sigwait(&set, &signal) != 0) {
  }
  SharedMemory::UnlinkAllForGood();
  absl::MutexLock lock(&mutex_);
  // A temporary file that is gone has got its final name already.
  const bool complete = !temporary_.empty() && unlink(temporary_.c_str()) != 0 && errno == ENOENT;
  if (isatty(STDERR_FILENO) == 1) std::fputs("\r\033[K", stderr);
  std::fputs(complete ? "Error: interrupted, but the output was complete\n" : "Error: interrupted\n", stderr);
  _exit(128 + signal);
}

absl::StatusOr<std::unique_ptr<AtomicFile>> Interrupts::CreateFile(const std::string& path) {
  absl::MutexLock lock(&mutex_);
  auto file = AtomicFile::Create(path);
  if (file.ok()) temporary_ = (*file)->temporary_path();
  return file;
}

}  // namespace kvcompress
