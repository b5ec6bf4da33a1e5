#include "server/rpc/idle_watch.h"

#include <algorithm>
#include <vector>

#include "absl/time/time.h"
#include "core/base/status_macros.h"
#include "core/base/thread.h"

namespace kvcompress {

absl::Status IdleWatch::Start() {
  if (timeout_.count() == 0) return absl::OkStatus();
  KVC_ASSIGN_OR_RETURN(thread_, StartThread([this] { Run(); }));
  return absl::OkStatus();
}

IdleWatch::~IdleWatch() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

void IdleWatch::Add(Watched* call) {
  absl::MutexLock lock(&mutex_);
  calls_.insert(call);
}

void IdleWatch::Remove(Watched* call) {
  absl::MutexLock lock(&mutex_);
  calls_.erase(call);
  // gRPC may end a call on the thread that cancels it.
  if (looked_at_ != call || std::this_thread::get_id() == thread_.get_id()) return;
  const auto left_alone = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return looked_at_ != call; };
  mutex_.Await(absl::Condition(&left_alone));
}

void IdleWatch::Run() {
  // A call is ended at most this much after its time.
  const absl::Duration pause =
      absl::FromChrono(std::clamp(timeout_ / 10, std::chrono::milliseconds(20), std::chrono::milliseconds(5000)));
  absl::MutexLock lock(&mutex_);
  while (!mutex_.AwaitWithTimeout(absl::Condition(&stopping_), pause)) {
    for (Watched* call : std::vector<Watched*>(calls_.begin(), calls_.end())) {
      if (!calls_.contains(call)) continue;
      looked_at_ = call;
      mutex_.Unlock();
      call->EndIfIdle();
      mutex_.Lock();
      looked_at_ = nullptr;
    }
  }
}

}  // namespace kvcompress
