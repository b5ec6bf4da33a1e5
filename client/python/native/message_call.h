#pragma once

#include <grpcpp/channel.h>

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/python/native/message_replies.h"
#include "client/remote/remote_client.h"
#include "client/remote/remote_stream.h"
#include "core/base/strided_span.h"

// A daemon's codec for callers of another language: tensors are described by the service's messages, serialized, and
// their bytes stay where they are.
namespace kvcompress {

struct ChannelOptions {
  std::string target;  // as gRPC names it
  std::optional<ClientTls> tls;
  std::string token;  // goes with every call; empty: none
};
// To a daemon, for any number of calls. Thread-safe.
class MessageChannel {
 public:
  // RESOURCE_EXHAUSTED where gRPC could not start its threads.
  static absl::StatusOr<std::shared_ptr<MessageChannel>> Make(const ChannelOptions& options);

  const std::shared_ptr<grpc::Channel>& grpc() const { return channel_; }
  // Connects a channel that has failed to, if the daemon takes connections by now: whoever calls again has waited
  // already, and is not to wait for gRPC, too. Where nobody listens a call ends at once with UNAVAILABLE. Calls that
  // come together, or soon one after the other, try once: more would be what gRPC's back-off spares the daemon.
  void Reconnect(absl::Time deadline);

 private:
  explicit MessageChannel(const ChannelOptions& options);
  std::shared_ptr<grpc::Channel> MakeChannel() const;
  bool IsTaken(absl::Time deadline) const;

  const ChannelOptions options_;
  const std::shared_ptr<grpc::Channel> channel_;
  absl::Mutex mutex_;
  bool reconnects_ ABSL_GUARDED_BY(mutex_) = false;  // a thread does
  absl::Time next_attempt_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
};

struct MessageItem {
  std::string_view header;             // v1::CompressHeader or v1::DecompressHeader
  StridedSpan<const std::byte> bytes;  // values of a tensor, or a frame
  // A v1::SharedMemoryRange: all values of a tensor, which the daemon reads by itself, and `bytes` is empty; for
  // streams.
  std::string_view place = {};
};

struct MessageCallOptions {
  enum class Way { kMessage, kStream };
  Way way = Way::kStream;  // one item, and its output, in one message each; or any number of items by a stream
  absl::Time deadline = absl::InfiniteFuture();
  MutableByteSpan region;  // that the daemon has mapped, for the bytes of a stream; empty: they go in messages
  uint64_t region_number = 0;
  bool output_is_larger = false;  // than is reckoned here, as a call with the region has found
  bool batches = false;           // whether small items may share messages, which the daemon says that it takes
};

// One call, which one thread works at.
class MessageCall {
 public:
  // Begins the call. The items' bytes are read as long as `owner` is held, which may be for longer than this object
  // lives: until gRPC has given up what it had to send. It is let go of where another call is destroyed, at the latest.
  // INVALID_ARGUMENT for headers and places that are none.
  static absl::StatusOr<std::unique_ptr<MessageCall>> Compress(const std::shared_ptr<MessageChannel>& channel,
                                                               const std::vector<MessageItem>& items,
                                                               std::shared_ptr<const void> owner,
                                                               const MessageCallOptions& options, MessageSink& sink);
  static absl::StatusOr<std::unique_ptr<MessageCall>> Decompress(const std::shared_ptr<MessageChannel>& channel,
                                                                 const std::vector<MessageItem>& items,
                                                                 std::shared_ptr<const void> owner,
                                                                 const MessageCallOptions& options, MessageSink& sink);
  virtual ~MessageCall() = default;

  // As StreamCall.
  virtual std::optional<StreamEnd> Run(CallWatch& watch) = 0;
  virtual void Cancel() = 0;
  // The most bytes that the frame of an item can have; empty for a call with a message, and where only the daemon
  // knows.
  virtual std::optional<uint64_t> MostFrameBytes(size_t item) const = 0;
};

}  // namespace kvcompress
