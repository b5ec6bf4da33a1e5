#pragma once

#include <map>
#include <memory>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "kvcompress/v1/kvcompress.grpc.pb.h"
#include "server/session/admission.h"
#include "server/shm/regions.h"
#include "server/telemetry/metrics.h"

namespace kvcompress {

// The SharedMemory streams of all clients. A stream stays open for as long as its client lives and does no work of its
// own: admission does not count it, and a drain does not wait for it. Must outlive the server.
class SharedMemoryStreams {
 public:
  using Reactor = grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>;
  static constexpr size_t kMaxStreams = 256;
  static constexpr size_t kMaxStreamsPerClient = 192;

  // The prefixes are those of Registration. An empty `prefix`: every stream is FAILED_PRECONDITION.
  SharedMemoryStreams(RegionTable& table, std::string prefix, std::string foreign_prefix, Admission& admission,
                      Metrics& metrics)
      : table_(table),
        prefix_(std::move(prefix)),
        foreign_prefix_(std::move(foreign_prefix)),
        admission_(admission),
        metrics_(metrics) {}
  // Waits until all streams have ended: whoever destroys this must have ended them.
  ~SharedMemoryStreams();

  // `client`: as Admission's.
  Reactor* Start(grpc::CallbackServerContext* context, const std::string& client);

  // Ends all streams, and those that begin later, with UNAVAILABLE.
  void Close();

 private:
  class Stream;

  absl::Status Admit(const std::shared_ptr<Stream>& stream, const std::string& client);
  absl::Status Reject(RejectReason reason, const absl::Status& status) const;
  void Remove(const Stream* stream);

  RegionTable& table_;
  const std::string prefix_;
  const std::string foreign_prefix_;
  Admission& admission_;
  Metrics& metrics_;

  absl::Mutex mutex_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<const Stream*, std::shared_ptr<Stream>> streams_ ABSL_GUARDED_BY(mutex_);
  size_t admitted_ ABSL_GUARDED_BY(mutex_) = 0;                               // of streams_
  absl::flat_hash_map<std::string, size_t> clients_ ABSL_GUARDED_BY(mutex_);  // each one's admitted streams, if any
};

}  // namespace kvcompress
