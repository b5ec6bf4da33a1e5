#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "client/codec_client.h"
#include "client/remote/delivery.h"
#include "core/frame/frame.h"
#include "proto/wire/convert.h"
#include "proto/wire/direction.h"

namespace kvcompress {

// `to_buffers`: the output goes to buffers that we give.
inline v1::CompressHeader HeaderOf(const CompressJob& job, bool to_buffers) {
  return MakeHeader(job.tensor, job.codec, to_buffers);
}
inline v1::DecompressHeader HeaderOf(const DecompressJob& job, bool to_buffers) {
  v1::DecompressHeader header = MakeHeader(job.name, to_buffers, job.fingerprint);
  header.set_frame_bytes(job.source->size());
  return header;
}

// The bytes of a job's input.
template <typename Job>
uint64_t InputBytes(const Job& job) {
  return job.source->size();
}
// Where the daemon reads the input by itself; null for all whose source is sent.
template <typename Job>
const v1::SharedMemoryRange* PlaceOf(const Job&) {
  return nullptr;
}

// The most bytes of output that a job can have; empty where that is not known beforehand.
std::optional<uint64_t> MaxOutputBytes(const CompressJob& job);
std::optional<uint64_t> MaxDecodedBytes(const ByteSource& frame);
inline std::optional<uint64_t> MaxOutputBytes(const DecompressJob& job) { return MaxDecodedBytes(*job.source); }

// "daemon ADDRESS: WHAT".
absl::Status DaemonFault(std::string_view address, absl::StatusCode code, std::string_view what);

// Takes a daemon's answers to one attempt at some jobs. An earlier attempt may have brought a part of the first job:
// only what the sink does not have yet is handed to it. An answer that cannot be right is INTERNAL, a fault of the
// daemon. This class is what both directions share.
class DaemonReplies {
 public:
  DaemonReplies(std::string_view address, Delivery& delivery) : address_(address), delivery_(delivery) {}

  absl::Status WrongReply(std::string_view what) const;

 protected:
  // The same for what `status` says is wrong.
  absl::Status WrongReply(const absl::Status& status) const { return WrongReply(std::string(status.message())); }
  // Ends the current job if the report is about it, and about as many bytes as came.
  absl::Status EndJob(const v1::TensorReport& report, std::string_view name, uint64_t tensor_bytes,
                      uint64_t frame_bytes);

  const std::string_view address_;
  Delivery& delivery_;
};

class CompressReplies : public DaemonReplies {
 public:
  using Direction = CompressDirection;
  using Job = CompressJob;
  using Sink = CompressSink;

  CompressReplies(std::string_view address, Sink& sink, Delivery& delivery)
      : DaemonReplies(address, delivery), sink_(sink) {}

  // Of the tensor that a report is about.
  static uint64_t OutputBytes(const v1::TensorReport& report) { return report.frame_bytes(); }

  // A frame describes its tensor itself.
  absl::Status OnDescription(const CompressJob&, const auto&) { return absl::OkStatus(); }
  static bool HasBegun(const v1::CompressResponse&, int) { return false; }
  absl::Status OnBegun(const CompressJob&, const v1::CompressResponse&, int&) { return absl::OkStatus(); }
  absl::Status OnBytes(const CompressJob& job, ByteSpan frame);
  absl::Status OnReport(const CompressJob& job, const v1::TensorReport& report);

 private:
  absl::Status Check(const CompressJob& job, ByteSpan frame);
  absl::Status CheckHeader(const CompressJob& job);

  CompressSink& sink_;
  FrameReader reader_;
};

class DecompressReplies : public DaemonReplies {
 public:
  using Direction = DecompressDirection;
  using Job = DecompressJob;
  using Sink = DecompressSink;

  DecompressReplies(std::string_view address, Sink& sink, Delivery& delivery)
      : DaemonReplies(address, delivery), sink_(sink) {}

  static uint64_t OutputBytes(const v1::TensorReport& report) { return report.tensor_bytes(); }

  absl::Status OnDescription(const DecompressJob& job, const auto& response) {
    return response.has_header() ? OnHeader(job, response.header()) : absl::OkStatus();
  }
  // Whether the response describes more tensors of a batch than `begun`.
  static bool HasBegun(const v1::DecompressResponse& response, int begun) { return begun < response.begun_size(); }
  // Takes the next of these descriptions if the job has none yet.
  absl::Status OnBegun(const DecompressJob& job, const v1::DecompressResponse& response, int& begun) {
    return tensor_ || !HasBegun(response, begun) ? absl::OkStatus() : OnHeader(job, response.begun(begun++));
  }
  absl::Status OnBytes(const DecompressJob& job, ByteSpan values);
  absl::Status OnReport(const DecompressJob& job, const v1::TensorReport& report);

 private:
  absl::Status OnHeader(const DecompressJob& job, const v1::Tensor& header);

  DecompressSink& sink_;
  std::optional<TensorDesc> tensor_;
  uint64_t expected_bytes_ = 0;  // of the tensor's values
  uint64_t value_bytes_ = 0;     // of those that came
};

}  // namespace kvcompress
