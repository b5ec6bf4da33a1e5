#pragma once

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "client/codec_client.h"
#include "client/remote/shared_memory_link.h"

namespace kvcompress {

// The shared memory of a client: what its calls borrow, and buffers that its users hold. Thread-safe. Where
// shared memory cannot be had there is none, and status() says why; the daemon is asked again after a pause.
class SharedMemoryPool {
 public:
  // What a call borrows, in bytes: small enough that what goes through it is still in a cache when it is read.
  static constexpr size_t kCallBytes = size_t{16} << 20;

  SharedMemoryPool(std::shared_ptr<grpc::Channel> channel, absl::Duration timeout,
                   absl::Duration pause = absl::Minutes(1))
      : state_(std::make_shared<State>()), channel_(std::move(channel)), timeout_(timeout), pause_(pause) {}

  // Memory for one call; null when there is none, or none by `deadline`.
  std::unique_ptr<RegisteredMemory> Take(absl::Time deadline);
  // Only memory that the daemon does not write to any more; destroy any other instead.
  void PutBack(std::unique_ptr<RegisteredMemory> memory);

  // Memory for a user; null when there is none.
  std::unique_ptr<SharedBuffer> Allocate(size_t bytes);
  // The range that tells the daemon of `bytes`; empty if they do not lie in such memory.
  std::optional<v1::SharedMemoryRange> Find(ByteSpan bytes) const;

  // The daemon has lost this memory and all that was registered with it: it was started again, or has ended the stream.
  // The next Take asks it anew.
  void Forget(const RegisteredMemory& memory) { Forget(memory.link()); }

  // Why there is no shared memory; OK while there is some, or if nobody has asked since the pause.
  absl::Status status() const;

 private:
  class Buffer;

  // Shared with the buffers, which may outlive the client.
  struct State {
    mutable absl::Mutex mutex;
    std::shared_ptr<SharedMemoryLink> link ABSL_GUARDED_BY(mutex);
    bool opening ABSL_GUARDED_BY(mutex) = false;  // a thread opens one
    absl::Status status ABSL_GUARDED_BY(mutex);
    absl::Time paused_until ABSL_GUARDED_BY(mutex);  // with a status that is not OK
    bool used ABSL_GUARDED_BY(mutex) = false;        // a call had memory of this link
    int losses ABSL_GUARDED_BY(mutex) = 0;           // since a call went well
    std::vector<std::unique_ptr<RegisteredMemory>> idle ABSL_GUARDED_BY(mutex);
    std::map<const std::byte*, const RegisteredMemory*> buffers ABSL_GUARDED_BY(mutex);  // by their first bytes
  };

  void Forget(const SharedMemoryLink* lost);
  void Pause(const absl::Status& status, absl::Duration pause) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_->mutex);
  absl::StatusOr<std::shared_ptr<SharedMemoryLink>> Link(absl::Time deadline);

  const std::shared_ptr<State> state_;
  const std::shared_ptr<grpc::Channel> channel_;
  const absl::Duration timeout_;
  const absl::Duration pause_;
};

}  // namespace kvcompress
