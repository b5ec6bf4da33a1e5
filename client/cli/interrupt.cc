#include "kvcompress/cli/interrupt.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <thread>

namespace kvcompress {
namespace {

sigset_t EndingSignals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction action;
    if (sigaction(signal, nullptr, &action) == 0 && action.sa_handler != SIG_IGN) sigaddset(&set, signal);
  }
  return set;
}

}  // namespace

Interrupts::Interrupts() {
  // A limit on the size of files is then an error of the write that meets it.
  signal(SIGXFSZ, SIG_IGN);
  const sigset_t set = EndingSignals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  // It ends with the process, and so may this object.
  std::thread([this] { Wait(); }).detach();
}

void Interrupts::Wait() {
  const sigset_t set = EndingSignals();
  int signal = 0;
  while (sigwait(&set, &signal) != 0) {
  }
  absl::MutexLock lock(&mutex_);
  if (!temporary_.empty()) unlink(temporary_.c_str());
  const bool terminal = isatty(STDERR_FILENO) == 1;
  std::fputs(terminal ? "\r\033[KError: interrupted\n" : "Error: interrupted\n", stderr);
  _exit(128 + signal);
}

absl::StatusOr<std::unique_ptr<AtomicFile>> Interrupts::CreateFile(const std::string& path) {
  absl::MutexLock lock(&mutex_);
  auto file = AtomicFile::Create(path);
  if (file.ok()) temporary_ = (*file)->temporary_path();
  return file;
}

}  // namespace kvcompress
