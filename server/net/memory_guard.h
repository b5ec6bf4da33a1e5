#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace kvcompress {

// Bytes that have come on a connection and reached a call, or were of use to one.
using DeliveredBytes = std::atomic<uint64_t>;

// Closes connections that fill the process's memory where no budget counts.
//
// gRPC keeps what comes until a call can have it: headers until their block ends, a message until it is whole, a call
// until somebody asks for its message. A client that never ends what it begins takes memory that no call is charged
// for. What can be known without reading along, TLS or not, is how many bytes the system has received on a connection,
// and how many of them came to calls as messages. While the process holds more memory than its limit, the connections
// on which most is outstanding are closed. Connections of unix sockets are not counted by the system, and stay.
//
// Thread-safe.
class MemoryGuard {
 public:
  struct Options {
    // Bytes of memory that the process may hold. Up to `reserve` above it, a connection is closed only if a multiple of
    // what messages on their way take is outstanding on it; beyond, if anything worth mentioning is.
    uint64_t limit = 0;
    uint64_t reserve = 0;
    // A connection is closed, of this peer, with so many bytes outstanding.
    std::function<void(const std::string& peer, uint64_t bytes)> on_close = nullptr;
  };

  explicit MemoryGuard(Options options) : options_(std::move(options)) {}
  ~MemoryGuard();
  MemoryGuard(const MemoryGuard&) = delete;
  MemoryGuard& operator=(const MemoryGuard&) = delete;

  // RESOURCE_EXHAUSTED when there is no thread for it.
  absl::Status Start();

  // A connection has been accepted; `peer` as gRPC's calls name it.
  void Add(int fd, const std::string& peer);

  // Where a call of this peer adds up the messages that reach it, by Count; never null.
  std::shared_ptr<DeliveredBytes> DeliveredTo(const std::string& peer);
  static void Count(DeliveredBytes& delivered, uint64_t message_bytes);

 private:
  using Clock = std::chrono::steady_clock;

  struct Connection {
    int fd;
    ino_t inode;
    std::shared_ptr<DeliveredBytes> delivered;
    uint64_t delivered_before = 0;
    uint64_t received_before = 0;
    uint64_t outstanding = 0;
  };

  void Run();
  // Brings what is outstanding on each connection up to date, and forgets those that are closed.
  void Update() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Those with at least half as much outstanding as the one with the most, if that is at least `least`; whether any.
  bool CloseTheLargest(uint64_t least) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Options options_;
  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  Clock::time_point updated_ ABSL_GUARDED_BY(mutex_) = Clock::now();
  absl::flat_hash_map<std::string, Connection> connections_ ABSL_GUARDED_BY(mutex_);  // by peer
  std::thread thread_;
};

}  // namespace kvcompress
