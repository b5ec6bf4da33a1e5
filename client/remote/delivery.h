#pragma once

#include <optional>

#include "absl/status/statusor.h"
#include "core/base/bytes.h"
#include "core/base/digest.h"
#include "core/base/tensor.h"

namespace kvcompress {

// How far a sink has got with the jobs of a call, over all attempts at it. A retry brings again what the sink has: that
// is told apart from what is new, and must be the same.
class Delivery {
 public:
  // The next attempt begins with the first job that is not done.
  void BeginAttempt();

  size_t jobs_done() const { return jobs_done_; }

  // Whether the sink does not know the description of the current job yet. INTERNAL when it knows another than
  // `tensor`.
  absl::StatusOr<bool> IsNew(const TensorDesc& tensor);

  // `bytes` are the next of the current job: returns those that the sink does not have yet. INTERNAL when the others
  // differ from those that it has.
  absl::StatusOr<ByteSpan> New(ByteSpan bytes);

  // INTERNAL when an earlier attempt brought more bytes of the job.
  absl::Status EndJob();

 private:
  size_t jobs_done_ = 0;
  // Of the current job.
  std::optional<TensorDesc> tensor_;
  uint64_t delivered_ = 0;  // bytes
  Digest digest_;           // of these
  uint64_t repeated_ = 0;   // bytes that this attempt has brought, up to delivered_
  Digest repeated_digest_;
};

}  // namespace kvcompress
