#pragma once

#include <cstddef>
#include <memory>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/notification.h"

namespace kvcompress {

// Starts a thread that runs `run`. RESOURCE_EXHAUSTED where the system gives no more (ulimit -u, a limit on pids), of
// which std::thread throws.
absl::StatusOr<std::thread> StartThread(absl::AnyInvocable<void()> run);

// Threads that do nothing. A library that ends the process when it cannot start its threads finds them once the reserve
// is destroyed, unless others are faster.
class ThreadReserve {
 public:
  // As StartThread, when there are not so many.
  static absl::StatusOr<std::unique_ptr<ThreadReserve>> Take(size_t threads);
  ~ThreadReserve();

 private:
  ThreadReserve() = default;

  absl::Notification end_;
  std::vector<std::thread> threads_;
};

// How many threads gRPC 1.51 starts on this machine, with some to spare.
size_t GrpcThreads();

}  // namespace kvcompress
