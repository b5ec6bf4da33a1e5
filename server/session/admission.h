#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/session/call_rates.h"

namespace kvcompress {

// Why a connection, a call, a stream or a tensor was turned away.
enum class RejectReason {
  kDraining,
  kMaxStreams,
  kMaxStreamsPerClient,
  kMaxCallRatePerClient,
  kMemoryBudget,
  kTensorTooLarge,
  kMaxConnections,
  kConnectionMemory,
  kUnauthenticated,
  kStreamIdle
};

// "draining", "max_streams", ...
std::string_view RejectReasonName(RejectReason reason);
std::vector<RejectReason> AllRejectReasons();

// A status that a retry can cure has a payload under this URL: the milliseconds to wait before it, as ASCII digits. The
// trailer grpc-retry-pushback-ms has the same text.
inline constexpr std::string_view kRetryPushbackUrl = "kvcompress/retry-pushback-ms";

// Decides at once who may come in: counts streams, and the bytes that they have been promised, against the daemon's
// limits. A promise with no work behind it keeps nobody out: it is taken back when another stream needs the memory.
// Thread-safe; must outlive its tickets.
class Admission {
 public:
  struct Options {
    uint64_t memory_budget = uint64_t{1} << 30;
    size_t max_streams = 256;
    size_t max_streams_per_client = 256;
    size_t max_call_rate_per_client = 0;  // calls a second; 0: any
    std::function<void(RejectReason)> on_reject = nullptr;
  };

  // Bytes of one stream, and how many of them are no mere promise.
  struct Share {
    uint64_t bytes = 0;
    uint64_t backed = 0;
  };

  // One stream, and the bytes that it holds; gives them back when it is destroyed.
  class Ticket {
   public:
    Ticket() = default;
    Ticket(Ticket&& other) noexcept { *this = std::move(other); }
    Ticket& operator=(Ticket&& other) noexcept;
    ~Ticket() { Release(); }

    // Makes the stream's share `bytes`, more or less than it was, all of it for what is there. RESOURCE_EXHAUSTED, and
    // nothing changes, when the budget does not have that much.
    absl::Status Resize(uint64_t bytes) { return Promise(bytes, bytes); }
    // The same for work that has begun to come: only `backed` of the bytes are for what is there. The rest holds until
    // another stream needs it; from then on the share is what was backed, and the next call asks for the rest again.
    absl::Status Promise(uint64_t bytes, uint64_t backed);

    // Returns the core's `status` of a tensor. RESOURCE_EXHAUSTED is a tensor above Limits::max_tensor_bytes, and
    // counts as turned away.
    absl::Status Count(absl::Status status) const;

    // As it was admitted.
    const std::string& client() const { return client_; }

    // The stream has its answer: from here on it counts against no limit. A drain still waits for it, because the last
    // of the answer may be on its way.
    void Settle();
    // The same, but only for the limits on streams: the answer's memory counts against the budget until it is sent.
    void SettleStream();

   private:
    friend class Admission;
    Ticket(Admission* admission, std::string client)
        : admission_(admission), client_(std::move(client)), share_(std::make_unique<Share>()) {}
    void Release();

    Admission* admission_ = nullptr;
    std::string client_;
    std::unique_ptr<Share> share_;  // guarded by the admission's mutex
    bool stream_settled_ = false;
  };

  explicit Admission(Options options);

  // RESOURCE_EXHAUSTED when this client calls more often than max_call_rate_per_client. An empty `client`, here and
  // below, cannot be told from others: limits of single clients do not apply to it.
  absl::Status AdmitCall(const std::string& client);

  // The same of a call that is a stream: also UNAVAILABLE while draining, and RESOURCE_EXHAUSTED when there are
  // max_streams already, or max_streams_per_client of this client.
  absl::StatusOr<Ticket> AdmitStream(std::string client = "");

  // From here on no stream comes in.
  void StartDraining();
  bool draining() const;
  // Waits until no stream is left; false when `timeout` passed before.
  bool WaitUntilIdle(absl::Duration timeout) const;

  size_t streams() const;
  uint64_t bytes() const;
  uint64_t memory_budget() const { return options_.memory_budget; }

 private:
  void SetShare(Share& share, uint64_t bytes, uint64_t backed) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Takes back so many bytes of promises to others than `asking`, if there are as many.
  void TakeBack(uint64_t bytes, const Share& asking) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Counts a call; zero, or how long until the client may make it.
  CallRates::Clock::duration TakeCall(const std::string& client) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status RejectCall(CallRates::Clock::duration wait) const;
  // `retry_after` zero: a retry does not help.
  absl::Status Reject(RejectReason reason, absl::Status status, std::chrono::milliseconds retry_after) const;

  const Options options_;
  mutable absl::Mutex mutex_;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  size_t streams_ ABSL_GUARDED_BY(mutex_) = 0;                                // not settled
  absl::flat_hash_map<std::string, size_t> clients_ ABSL_GUARDED_BY(mutex_);  // their streams, not settled; none is 0
  size_t open_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::flat_hash_set<Share*> promises_ ABSL_GUARDED_BY(mutex_);  // of which not all is backed
  std::optional<CallRates> rates_ ABSL_GUARDED_BY(mutex_);        // nothing: any
};

}  // namespace kvcompress
