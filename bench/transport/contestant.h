#pragma once

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "bench/transport/workload.h"
#include "kvcompress/v1/kvcompress.grpc.pb.h"

// The ways to get tensors compressed, or, of the peers, to get as many bytes moved. All are clients; what they are
// connected to runs in a process of its own, except the embedded codec.
namespace kvcompress::bench {

// Compresses tensors on all streams of a workload at once.
class Contestant {
 public:
  virtual ~Contestant() = default;
  // Until `progress` says stop; what is then in flight is given up. Adds the bytes of frames as they come.
  virtual absl::Status Run(Progress& progress) = 0;
};

// Compresses one tensor of a workload at a time.
class Caller {
 public:
  virtual ~Caller() = default;
  // Returns when all of the answer has come.
  virtual absl::Status Call() = 0;
};

using grpc::GenericStub;
// Streams beyond these share connections.
inline constexpr size_t kMaxConnections = 8;

// A connection of its own to `address`, made before this returns; UNAVAILABLE when it cannot be.
absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(const std::string& address);

// What the metadata of every call tell the sink, which does not look into messages. The daemon ignores them.
inline constexpr char kTensorBytesKey[] = "bench-tensor-bytes";
inline constexpr char kFrameBytesKey[] = "bench-frame-bytes";
void Describe(const Workload& workload, grpc::ClientContext& context);

// Messages of bytes to a daemon or a sink, by raw buffers that refer to the values.
absl::StatusOr<std::unique_ptr<Contestant>> NewByteStreams(const Workload& workload, const std::string& address);
// Descriptors of shared memory to a daemon.
absl::StatusOr<std::unique_ptr<Contestant>> NewSharedMemoryStreams(const Workload& workload,
                                                                   const std::string& address);
// Bytes to a raw socket's server.
absl::StatusOr<std::unique_ptr<Contestant>> NewSocketStreams(const Workload& workload, const std::string& address);
// The embedded codec over spans, on as many threads as there are CPUs whatever the number of streams. Tensors above the
// buffer's size are compressed in pieces of it.
absl::StatusOr<std::unique_ptr<Contestant>> NewEmbedded(const Workload& workload, const std::string& address);
// The project's own client library.
enum class LibraryMode {
  kLocal,             // the codec in this process
  kConnection,        // bytes go through the connection
  kSharedMemoryCopy,  // through shared memory, into which the library copies them
  kSharedMemory,      // the values lie in memory that the library has allocated
};
absl::StatusOr<std::unique_ptr<Contestant>> NewLibraryStreams(const Workload& workload, const std::string& address,
                                                              LibraryMode mode);

enum class CallKind {
  kUnary,       // CompressTensor: one message out, one back
  kStream,      // a new Compress call for each tensor
  kOpenStream,  // one tensor more on a Compress call
};
absl::StatusOr<std::unique_ptr<Caller>> NewRpcCaller(const Workload& workload, const std::string& address,
                                                     CallKind kind);
absl::StatusOr<std::unique_ptr<Caller>> NewSocketCaller(const Workload& workload, const std::string& address);
absl::StatusOr<std::unique_ptr<Caller>> NewLibraryCaller(const Workload& workload, const std::string& address,
                                                         LibraryMode mode);

}  // namespace kvcompress::bench
