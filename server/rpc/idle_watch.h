#pragma once

#include <chrono>
#include <thread>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace kvcompress {

// Looks now and then, on a thread of its own, for calls whose clients stand still. Thread-safe.
class IdleWatch {
 public:
  using Clock = std::chrono::steady_clock;

  class Watched {
   public:
    // Ends the call if nothing has moved for too long although it is the client's turn. On the watch's thread, without
    // locks. The call may be gone when it returns.
    virtual void EndIfIdle() = 0;

   protected:
    ~Watched() = default;
  };

  // How long a client may take to send. Zero: calls may stand still for as long as they like.
  explicit IdleWatch(std::chrono::milliseconds timeout) : timeout_(timeout) {}
  ~IdleWatch();
  IdleWatch(const IdleWatch&) = delete;
  IdleWatch& operator=(const IdleWatch&) = delete;

  // RESOURCE_EXHAUSTED when there is no thread for it.
  absl::Status Start();

  // Whether nothing has moved since `last` for longer than a client may take to send.
  bool IsIdle(Clock::time_point last) const { return Clock::now() - last > timeout_; }
  // The same where the client is to take something: a client's HTTP/2 tells only now and then how much it has taken, so
  // what looks like a standstill may be a slow reader. It has ten times as long.
  bool IsStuck(Clock::time_point last) const { return Clock::now() - last > 10 * timeout_; }
  std::chrono::milliseconds timeout() const { return timeout_; }

  void Add(Watched* call);
  // The watch does not touch the call any more when this returns, unless it is the watch that ends it and therefore
  // asks.
  void Remove(Watched* call);

 private:
  void Run();

  const std::chrono::milliseconds timeout_;
  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  absl::flat_hash_set<Watched*> calls_ ABSL_GUARDED_BY(mutex_);
  Watched* looked_at_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::thread thread_;
};

}  // namespace kvcompress
