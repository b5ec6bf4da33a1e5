#pragma once

#include <optional>

#include "absl/status/statusor.h"
#include "core/base/bytes.h"
#include "core/base/digest.h"
#include "core/base/tensor.h"

namespace kvcompress {

// How far a sink has got with the jobs of a call, over all attempts of it: what a retry brings again is told apart from
// what is new, and must be the same.
class Delivery {
 public:
  // The next attempt begins with the first job that is not done.
  void BeginAttempt();

  size_t jobs_done() const { return jobs_done_; }

  // Whether the sink does not know `tensor`, the current job's, yet. INTERNAL when it knows another.
  absl::StatusOr<bool> IsNew(const TensorDesc& tensor);

  // The part of `bytes`, the next of the current job, that the sink does not have yet. INTERNAL when those that it has
  // were different.
  absl::StatusOr<ByteSpan> New(ByteSpan bytes);

  // INTERNAL when the job had more bytes before.
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
