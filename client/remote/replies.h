#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "client/codec_client.h"
#include "client/remote/delivery.h"
#include "core/frame/frame.h"
#include "kvcompress/v1/kvcompress.pb.h"

namespace kvcompress {

// "daemon ADDRESS: WHAT".
absl::Status DaemonFault(std::string_view address, absl::StatusCode code, std::string_view what);

// Takes a daemon's answers to one attempt at `jobs`, the first of which may be known in part already: checks that they
// can be, and hands to the sink what it does not have. What cannot be is INTERNAL and a fault of the daemon.
class CompressReplies {
 public:
  using Job = CompressJob;
  using Sink = CompressSink;

  CompressReplies(std::string_view address, Sink& sink, Delivery& delivery)
      : address_(address), sink_(sink), delivery_(delivery) {}

  absl::Status OnBytes(const CompressJob& job, ByteSpan frame);
  absl::Status OnReport(const CompressJob& job, const v1::TensorReport& report);

 private:
  absl::Status Check(const CompressJob& job, ByteSpan frame);
  absl::Status CheckHeader(const CompressJob& job);
  absl::Status WrongReply(std::string_view what) const;

  const std::string_view address_;
  CompressSink& sink_;
  Delivery& delivery_;
  FrameReader reader_;
};

class DecompressReplies {
 public:
  using Job = DecompressJob;
  using Sink = DecompressSink;

  DecompressReplies(std::string_view address, Sink& sink, Delivery& delivery)
      : address_(address), sink_(sink), delivery_(delivery) {}

  absl::Status OnHeader(const v1::Tensor& header);
  absl::Status OnBytes(const DecompressJob& job, ByteSpan values);
  absl::Status OnReport(const DecompressJob& job, const v1::TensorReport& report);

 private:
  absl::Status WrongReply(std::string_view what) const;

  const std::string_view address_;
  DecompressSink& sink_;
  Delivery& delivery_;
  std::optional<TensorDesc> tensor_;
  uint64_t expected_bytes_ = 0;  // of the tensor's values
  uint64_t value_bytes_ = 0;
};

}  // namespace kvcompress
