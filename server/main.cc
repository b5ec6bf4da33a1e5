#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <thread>

#include "absl/strings/str_format.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "core/base/allocator.h"
#include "core/base/cgroup.h"
#include "core/base/file.h"
#include "core/base/standard_streams.h"
#include "core/base/status_macros.h"
#include "core/base/thread.h"
#include "server/config/options.h"
#include "server/daemon.h"
#include "server/health_probe.h"
#include "server/telemetry/log.h"

namespace kvcompress {
namespace {

// Before any library is initialized.
[[gnu::section(".preinit_array"), gnu::used]] void (*fill_standard_streams)() = FillStandardStreams;

absl::Status WritePortFile(const std::string& path, const Daemon& daemon) {
  nlohmann::json ports = {{"listen", daemon.listen()}, {"metrics", daemon.metrics_listen()}};
  const std::string text = ports.dump() + "\n";
  KVC_ASSIGN_OR_RETURN(const std::unique_ptr<AtomicFile> file, AtomicFile::Create(path));
  KVC_RETURN_IF_ERROR(file->WriteAt(0, AsBytes(text)));
  return file->Commit();
}

// How long the process waits at its end for whoever reads standard error.
constexpr absl::Duration kLogPatience = absl::Seconds(1);

int Failure(const absl::Status& status, int code) {
  FlushLog(kLogPatience);
  pollfd reader{STDERR_FILENO, POLLOUT, 0};
  if (poll(&reader, 1, static_cast<int>(absl::ToInt64Milliseconds(kLogPatience))) == 1) {
    std::fprintf(stderr, "kv-compressd: %s\n", std::string(status.message()).c_str());
  }
  return code;
}

// SIGTERM and SIGINT are waited for, not handled: they are blocked in every thread. The first is told to the main
// thread, the second ends the process. The thread that waits for them is there from the start: when a signal comes
// there may be none to be had.
class Signals {
 public:
  // Call it before any other thread is started. Never destroyed: its thread ends with the process.
  absl::Status Block() {
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGTERM);
    sigaddset(&signals_, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
    // A write to a reader that has gone, or beyond the limit on file sizes, then fails with an error.
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    KVC_ASSIGN_OR_RETURN(std::thread thread, StartThread([this] { Run(); }));
    thread.detach();
    return absl::OkStatus();
  }

  std::string WaitForFirst() {
    came_.WaitForNotification();
    return Name(first_);
  }

 private:
  static std::string Name(int number) { return number == SIGINT ? "SIGINT" : "SIGTERM"; }

  void Run() {
    sigwait(&signals_, &first_);
    came_.Notify();
    int second = 0;
    sigwait(&signals_, &second);
    Log(LogLevel::kWarning, "ending at once", {{"signal", Name(second)}});
    FlushLog(absl::Milliseconds(50));
    _exit(128 + second);
  }

  sigset_t signals_{};
  int first_ = 0;
  absl::Notification came_;
};

// Raises the limit of open files to what the connections, and all else, may need; the system's limit may be lower.
void AllowDescriptors(size_t connections) {
  constexpr rlim_t kOthers = 512;
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= connections + kOthers) return;
  limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, connections + kOthers);
  setrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur < connections + kOthers) {
    Log(LogLevel::kWarning, "the limit of open files is too low for --max-connections: some will wait",
        {{"open_files", uint64_t{limit.rlim_cur}}});
  }
}

// A process that is ended by its container's limit cannot say why, so this says it before.
void WarnOfMemoryLimit(uint64_t memory_budget) {
  constexpr uint64_t kProcess = uint64_t{256} << 20;  // what the program and gRPC need besides
  const std::optional<uint64_t> limit = ReadCgroupLimits().memory_bytes;
  if (!limit || memory_budget + kProcess <= *limit) return;
  Log(LogLevel::kWarning,
      "the container's memory limit is too low for --memory-budget and 256 MiB besides: the system may end this daemon "
      "under load",
      {{"memory_budget", memory_budget}, {"memory_limit", *limit}});
}

// With the ports that the system has chosen.
void LogStart(const Options& options, const Daemon& daemon) {
  const auto or_off = [](const std::string& text) { return text.empty() ? "off" : text; };
  Log(LogLevel::kInfo, "started",
      {{"version", ThisBuild().version},
       {"threads", uint64_t{daemon.threads()}},
       {"memory_budget", options.memory_budget},
       {"shared_memory", or_off(options.shared_memory_prefix)},
       {"foreign_memory", or_off(options.foreign_memory_prefix)}});
  if (daemon.threads() < daemon.threads_wanted()) {
    Log(LogLevel::kWarning, "fewer codec threads than asked for: the system gives no more",
        {{"threads", uint64_t{daemon.threads()}}, {"wanted", uint64_t{daemon.threads_wanted()}}});
  }
  for (const std::string& address : daemon.listen()) Log(LogLevel::kInfo, "serving", {{"listen", address}});
  Log(LogLevel::kInfo, "serving", {{"metrics", or_off(daemon.metrics_listen())}});
}

int Serve(const Options& options) {
  static Signals& signals = *new Signals;
  if (const absl::Status status = signals.Block(); !status.ok()) return Failure(status, 1);
  if (const absl::Status status = SetUpLog(options.log_level, options.log_json); !status.ok()) {
    return Failure(status, 1);
  }
  AllowDescriptors(options.max_connections);
  WarnOfMemoryLimit(options.memory_budget);
  const absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Start(options);
  if (!daemon.ok()) return Failure(daemon.status(), 1);
  LogStart(options, **daemon);
  if (!options.port_file.empty()) {
    if (const absl::Status status = WritePortFile(options.port_file, **daemon); !status.ok()) {
      return Failure(absl::Status(status.code(), absl::StrFormat("--port-file: %s", status.message())), 1);
    }
  }

  Log(LogLevel::kInfo, "draining", {{"signal", signals.WaitForFirst()}});
  (*daemon)->Drain();
  Log(LogLevel::kInfo, "stopped");
  FlushLog(kLogPatience);
  // Without destructors: the log's thread may wait for a reader.
  _exit(0);
}

int Main(std::span<char*> words) {
  const std::vector<std::string> args(words.begin(), words.end());
  const auto environment = [](const char* name) -> const char* {
    return std::getenv(name);  // NOLINT(concurrency-mt-unsafe): no thread runs yet
  };
  const absl::StatusOr<Options> options = ParseOptions(args, environment);
  if (!options.ok()) return Failure(options.status(), 2);
  if (options->help) {
    std::fputs(OptionsUsage().c_str(), stdout);
    return 0;
  }
  if (options->version) {
    const BuildInfo build = ThisBuild();
    std::printf("kv-compressd %s (%s, %s)\n", build.version.c_str(), build.compiler.c_str(), build.simd_target.c_str());
    return 0;
  }
  if (options->healthcheck) {
    const absl::Status health = ProbeHealth(*options);
    return health.ok() ? 0 : Failure(health, 1);
  }
  return Serve(*options);
}

}  // namespace
}  // namespace kvcompress

// NOLINTNEXTLINE(bugprone-exception-escape): without memory for its flags the program may as well end
int main(int argc, char** argv) {
  kvcompress::KeepFreedMemory();
  // Debian builds Abseil, and with it gRPC's locks, so that every lock is entered into a graph of their order.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  const std::span<char*> words(argv, static_cast<size_t>(argc));
  return kvcompress::Main(words.subspan(argc > 0 ? 1 : 0));
}
