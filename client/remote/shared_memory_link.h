#pragma once

#include <grpcpp/channel.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "core/base/shared_memory.h"
#include "kvcompress/v1/kvcompress.pb.h"

namespace kvcompress {

class SharedMemoryLink;

// Memory of this process that a daemon has mapped, too, until it is destroyed.
class RegisteredMemory {
 public:
  RegisteredMemory(std::shared_ptr<SharedMemoryLink> link, std::string name, SharedMapping mapping, uint64_t region)
      : link_(std::move(link)), name_(std::move(name)), mapping_(std::move(mapping)), region_(region) {}
  ~RegisteredMemory();
  RegisteredMemory(const RegisteredMemory&) = delete;
  RegisteredMemory& operator=(const RegisteredMemory&) = delete;

  MutableByteSpan bytes() const { return mapping_.bytes(); }
  uint64_t region() const { return region_; }  // the daemon's name for it
  const SharedMemoryLink* link() const { return link_.get(); }

  // Whether a call has found that the daemon, of another version, makes larger output than is reckoned here.
  bool output_is_larger() const;
  void OnLargerOutput();

 private:
  const std::shared_ptr<SharedMemoryLink> link_;
  const std::string name_;
  const SharedMapping mapping_;
  const uint64_t region_;
};

// The stream on which memory is registered with a daemon of this host. Thread-safe.
class SharedMemoryLink : public std::enable_shared_from_this<SharedMemoryLink> {
 public:
  // Asks the daemon whether it takes shared memory. UNIMPLEMENTED when it does not.
  static absl::StatusOr<std::shared_ptr<SharedMemoryLink>> Open(const std::shared_ptr<grpc::Channel>& channel,
                                                                absl::Time deadline);
  ~SharedMemoryLink();

  // Makes memory and registers it. Its key is gone once the daemon has the memory, and the daemon removes it when this
  // process is killed before. ABORTED when others kept the stream busy until the deadline.
  absl::StatusOr<std::unique_ptr<RegisteredMemory>> Register(size_t bytes, absl::Time deadline);
  // Whether somebody has noticed that the stream has ended, and with it all that was registered on it.
  bool is_lost() const;

 private:
  friend class RegisteredMemory;
  class Stream;

  SharedMemoryLink(std::unique_ptr<Stream> stream, std::string prefix);
  // Waits for nobody.
  void Unregister(const std::string& name);
  void UnregisterNow() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<v1::SharedMemoryResponse> Ask(const v1::SharedMemoryRequest& request, absl::Time deadline);
  // What keys begin with, after "/".
  absl::StatusOr<std::string> KeyPrefix(absl::Time deadline);

  const std::string prefix_;  // of all clients
  std::atomic<bool> output_is_larger_ = false;
  mutable absl::Mutex mutex_;
  bool asking_ ABSL_GUARDED_BY(mutex_) = false;  // a thread is in Ask, and has the stream for itself
  bool lost_ ABSL_GUARDED_BY(mutex_) = false;
  std::string key_prefix_ ABSL_GUARDED_BY(mutex_);               // of this stream, once the daemon has been asked
  std::vector<std::string> unregister_ ABSL_GUARDED_BY(mutex_);  // names, meanwhile
  const std::unique_ptr<Stream> stream_;
};

}  // namespace kvcompress
