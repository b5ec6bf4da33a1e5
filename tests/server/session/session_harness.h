#pragma once

#include <atomic>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "core/base/thread_pool.h"
#include "server/session/session.h"

// Plays the transport of a session: one message in and one out at a time, as the session allows.
namespace kvcompress::testing {

// The bytes of a full block of values of two bytes.
inline constexpr uint64_t kBlock = kDefaultBlockElements * 2;

inline v1::CompressRequest Data(ByteSpan bytes) {
  v1::CompressRequest request;
  request.set_data(std::string(AsText(bytes)));
  return request;
}

// Memory of this process in the role of a client's.
struct FakeRegion final : SharedRegion {
  explicit FakeRegion(size_t size) : storage(size) {}
  MutableByteSpan bytes() const override { return storage; }
  bool intact() const override { return is_intact; }
  bool is_writable() const override { return writable; }

  mutable std::vector<std::byte> storage;
  std::atomic<bool> is_intact = true;
  bool writable = true;
};

struct NullObserver final : SessionObserver {
  void OnCompressed(const TensorReport&, const Quality&, const std::vector<Violation>&) override { ++compressed; }
  void OnDecompressed(const TensorReport&) override { ++decompressed; }

  std::atomic<int> compressed = 0;
  std::atomic<int> decompressed = 0;
};

// Lets a test wait for a session's wake-ups.
class Signal {
 public:
  void Set() {
    absl::MutexLock lock(&mutex_);
    set_ = true;
  }
  void Wait() {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&set_));
    set_ = false;
  }

 private:
  absl::Mutex mutex_;
  bool set_ ABSL_GUARDED_BY(mutex_) = false;
};

inline void SetBytes(v1::CompressResponse& response, std::string bytes) { response.set_frame(std::move(bytes)); }
inline void SetBytes(v1::DecompressResponse& response, std::string bytes) { response.set_data(std::move(bytes)); }

template <typename S>
struct Driver {
  using Request = typename S::Request;
  using Response = typename S::Response;

  Driver(ThreadPool& pool, Admission& admission, SessionOptions options)
      : session(pool, std::move(options), *admission.AdmitStream(), observer, [this] { signal.Set(); }) {}

  // The next response as it would be on the wire.
  bool Pop(Response& response) {
    Outgoing<Response> outgoing;
    const bool promised = session.has_next();
    if (!session.Pop(outgoing)) {
      // A transport may hold back what it has until the response that it was promised.
      if (promised && session.status().ok()) std::abort();
      return false;
    }
    response = std::move(outgoing.response);
    if (outgoing.bytes.empty()) return true;
    std::string bytes;
    for (const Slice& slice : outgoing.bytes) bytes += AsText(slice.bytes);
    SetBytes(response, std::move(bytes));
    return true;
  }

  // Pushes what the window takes; returns how many of the requests.
  size_t PushWhileWanted(const std::vector<Request>& requests) {
    size_t pushed = 0;
    while (pushed < requests.size() && session.wants_input()) session.Push(requests[pushed++]);
    return pushed;
  }

  // Takes responses until the window takes the request.
  void PushWhenWanted(Request request) {
    while (!session.wants_input()) {
      Response response;
      if (!Pop(response) && !session.wants_input()) signal.Wait();
    }
    session.Push(std::move(request));
  }

  // Whether `holds()` comes to be true; takes responses meanwhile. A pool thread that feeds the session takes what is
  // pushed then, so that Push may be over before it is fed.
  template <typename Condition>
  bool Soon(const Condition& holds) {
    const absl::Time deadline = absl::Now() + absl::Seconds(10);
    while (!holds()) {
      if (absl::Now() > deadline) return false;
      Response response;
      if (!Pop(response)) absl::SleepFor(absl::Milliseconds(1));
    }
    return true;
  }

  // The whole stream, half-close included.
  absl::Status Run(const std::vector<Request>& requests) {
    size_t next = 0;
    bool closed = false;
    while (!session.done()) {
      Response response;
      if (Pop(response)) {
        responses.push_back(std::move(response));
      } else if (!session.wants_input()) {
        if (!session.done()) signal.Wait();
      } else if (next < requests.size()) {
        session.Push(requests[next++]);
      } else if (!std::exchange(closed, true)) {
        session.HalfClose();
      }
    }
    return session.status();
  }

  NullObserver observer;
  Signal signal;
  std::vector<Response> responses;
  S session;
};

}  // namespace kvcompress::testing
