#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <type_traits>

#include "absl/status/status.h"
#include "client/remote/delivery.h"
#include "client/remote/jobs.h"
#include "core/base/byte_source.h"
#include "core/base/bytes.h"
#include "kvcompress/v1/kvcompress.pb.h"
#include "proto/wire/direction.h"

// Jobs and answers for the exchanges of client/remote, of a caller who reads and writes the service's messages itself.
namespace kvcompress {

// One tensor or frame, which the service's message describes.
template <typename D>
struct MessageJob {
  std::remove_cvref_t<decltype(typename D::Request().header())> header;
  const ByteSource* source = nullptr;
  // Of a tensor that the daemon reads by itself, in place of the source's bytes.
  std::optional<v1::SharedMemoryRange> place = std::nullopt;
  // Of a tensor's frame, where the header says enough; a daemon may know what it leaves out.
  std::optional<uint64_t> most_frame_bytes = std::nullopt;
};

template <typename D>
uint64_t InputBytes(const MessageJob<D>& job) {
  return job.place ? job.place->byte_size() : job.source->size();
}
template <typename D>
const v1::SharedMemoryRange* PlaceOf(const MessageJob<D>& job) {
  return job.place ? &*job.place : nullptr;
}

inline v1::CompressHeader HeaderOf(const MessageJob<CompressDirection>& job, bool to_buffers) {
  v1::CompressHeader header = job.header;
  header.set_frame_to_buffer(to_buffers);
  return header;
}
inline v1::DecompressHeader HeaderOf(const MessageJob<DecompressDirection>& job, bool to_buffers) {
  v1::DecompressHeader header = job.header;
  header.set_data_to_buffer(to_buffers);
  return header;
}

template <typename D>
std::optional<uint64_t> MaxOutputBytes(const MessageJob<D>& job) {
  if constexpr (std::is_same_v<D, DecompressDirection>) return MaxDecodedBytes(*job.source);
  return job.most_frame_bytes;
}

// Receives what a call makes, in the order of its jobs, from the thread that runs it. An error that is returned ends
// the call.
class MessageSink {
 public:
  virtual ~MessageSink() = default;
  virtual absl::Status OnTensor(const v1::Tensor& tensor) = 0;        // what the current frame holds
  virtual absl::Status OnBytes(ByteSpan bytes) = 0;                   // the next ones of the current frame or tensor
  virtual absl::Status OnReport(const v1::TensorReport& report) = 0;  // which ends a job
};

// The daemon's answers to one call, serialized. What cannot be an answer is INTERNAL.
template <typename D>
class MessageReplies {
 public:
  using Direction = D;
  using Job = MessageJob<D>;
  using Sink = MessageSink;

  MessageReplies(std::string_view, Sink& sink, Delivery&) : sink_(sink) {}

  absl::Status WrongReply(std::string_view what) const { return absl::InternalError(std::string(what)); }

  absl::Status OnDescription(const Job&, const auto& response) {
    if constexpr (std::is_same_v<D, DecompressDirection>) {
      if (response.has_header()) return Describe(response.header());
    }
    return absl::OkStatus();
  }
  // Of the tensor that a report is about.
  static uint64_t OutputBytes(const v1::TensorReport& report) {
    return std::is_same_v<D, CompressDirection> ? report.frame_bytes() : report.tensor_bytes();
  }
  // Whether the response describes more tensors of a batch than `begun`.
  static bool HasBegun(const typename D::Response& response, int begun) {
    if constexpr (std::is_same_v<D, DecompressDirection>) return begun < response.begun_size();
    return false;
  }
  // Takes the next of these descriptions if the job has none yet.
  absl::Status OnBegun(const Job&, const typename D::Response& response, int& begun) {
    if constexpr (std::is_same_v<D, DecompressDirection>) {
      if (!is_described_ && HasBegun(response, begun)) return Describe(response.begun(begun++));
    }
    return absl::OkStatus();
  }
  absl::Status OnBytes(const Job&, ByteSpan bytes) { return sink_.OnBytes(bytes); }
  absl::Status OnReport(const Job&, const v1::TensorReport& report) {
    is_described_ = false;
    return sink_.OnReport(report);
  }

 private:
  absl::Status Describe(const v1::Tensor& tensor) {
    is_described_ = true;
    return sink_.OnTensor(tensor);
  }

  Sink& sink_;
  bool is_described_ = false;  // the current job, by a v1::Tensor
};

}  // namespace kvcompress
