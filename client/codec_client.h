#pragma once

#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "core/base/byte_source.h"
#include "core/base/tensor.h"
#include "core/tensor_report.h"

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
  std::string fingerprint = {};        // that the frame must have, or the call is ABORTED; empty: any, or none
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

// Memory that a client's calls can read without a copy.
class SharedBuffer {
 public:
  virtual ~SharedBuffer() = default;
  virtual MutableByteSpan bytes() = 0;
};

// Calls block until every job is done or one has failed. A deadline that passes is DEADLINE_EXCEEDED.
class CodecClient {
 public:
  virtual ~CodecClient() = default;
  virtual absl::Status Compress(std::span<const CompressJob> jobs, absl::Time deadline, CompressSink& sink) = 0;
  virtual absl::Status Decompress(std::span<const DecompressJob> jobs, absl::Time deadline, DecompressSink& sink) = 0;

  // Memory for jobs' sources that is read fastest: where it can, a daemon on this host reads it in place. It may
  // outlive the client.
  virtual std::unique_ptr<SharedBuffer> Allocate(size_t bytes);
  // How bytes travel, as text for people. With a daemon: how they did in the last call.
  virtual std::string Transport() const { return "in this process"; }
};

}  // namespace kvcompress
