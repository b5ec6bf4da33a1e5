#pragma once

#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvcompress/base/byte_source.h"
#include "kvcompress/base/tensor.h"
#include "kvcompress/compressor.h"

// Compression as callers see it, wherever the codec runs: in this process or in a daemon. Both give the same bytes.
namespace kvcompress {

// The sources of both kinds of jobs are read by several threads, and must live until the call returns.
struct CompressJob {
  TensorDesc tensor;
  std::string codec;
  const ByteSource* source = nullptr;  // the tensor's values: as many bytes as its shape says
};

struct DecompressJob {
  std::string name;
  const ByteSource* source = nullptr;  // one whole frame
};

// Receives what a call makes, in the order of its jobs: calls come one at a time, from any thread. An error that is
// returned ends the call, which then returns it.
class CompressSink {
 public:
  virtual ~CompressSink() = default;
  virtual absl::Status OnFrame(ByteSpan bytes) = 0;               // the next bytes of the current job's frame
  virtual absl::Status OnTensor(const TensorReport& report) = 0;  // ends a job
};

class DecompressSink {
 public:
  virtual ~DecompressSink() = default;
  virtual absl::Status OnHeader(const TensorDesc& tensor) = 0;
  virtual absl::Status OnData(ByteSpan values) = 0;
  virtual absl::Status OnTensor(const TensorReport& report) = 0;
};

// Calls block until every job is done or one has failed. A deadline that passes is DEADLINE_EXCEEDED.
class CodecClient {
 public:
  virtual ~CodecClient() = default;
  virtual absl::Status Compress(std::span<const CompressJob> jobs, absl::Time deadline, CompressSink& sink) = 0;
  virtual absl::Status Decompress(std::span<const DecompressJob> jobs, absl::Time deadline, DecompressSink& sink) = 0;
};

// The codec in this process, on `threads` threads (0: one for each CPU).
std::unique_ptr<CodecClient> MakeLocalClient(size_t threads);

struct RemoteOptions {
  std::string address;  // HOST:PORT, or unix:PATH
  absl::Duration connect_timeout = absl::Seconds(5);
};

// A daemon. It is connected to by the first call; one that cannot be reached is UNAVAILABLE, "connect to ADDRESS: ...".
// What a daemon says of the data (INVALID_ARGUMENT, DATA_LOSS, ...) has the same text as from the local codec; faults
// of the daemon or the network begin with "daemon ADDRESS: ". INVALID_ARGUMENT for an address of the wrong form.
absl::StatusOr<std::unique_ptr<CodecClient>> MakeRemoteClient(const RemoteOptions& options);

}  // namespace kvcompress
