#include "core/base/thread.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace kvcompress {

absl::StatusOr<std::thread> StartThread(absl::AnyInvocable<void()> run) {
  try {
    return std::thread(std::move(run));
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(
        absl::StrCat("start a thread: ", absl::AsciiStrToLower(error.code().message())));
  }
}

absl::StatusOr<std::unique_ptr<ThreadReserve>> ThreadReserve::Take(size_t threads) {
  std::unique_ptr<ThreadReserve> reserve(new ThreadReserve);
  ThreadReserve* const held = reserve.get();
  for (size_t i = 0; i < threads; ++i) {
    KVC_ASSIGN_OR_RETURN(std::thread thread, StartThread([held] { held->end_.WaitForNotification(); }));
    reserve->threads_.push_back(std::move(thread));
  }
  return reserve;
}

ThreadReserve::~ThreadReserve() {
  end_.Notify();
  for (std::thread& thread : threads_) thread.join();
}

size_t GrpcThreads() {
  // Of its event engine up to 32, of its completion queues 2 to 16, timers, executors, and those of a server.
  const size_t cpus = std::max(1u, std::thread::hardware_concurrency());
  return std::clamp<size_t>(cpus, 2, 32) + std::clamp<size_t>(cpus / 2, 2, 16) + 10;
}

}  // namespace kvcompress
