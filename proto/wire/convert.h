#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/quality/quality.h"
#include "core/simd/rotary.h"
#include "core/tensor_report.h"
#include "kvcompress/v1/kvcompress.pb.h"

// Between the core's types and the service's messages.
namespace kvcompress {

// A message without axes gets those that its contract says. INVALID_ARGUMENT without a dtype, and for enum numbers that
// this build does not know; the rest is for ValidateTensor to check.
absl::StatusOr<TensorDesc> FromMessage(const v1::Tensor& message);
void ToMessage(const TensorDesc& tensor, v1::Tensor& message);

// INVALID_ARGUMENT for an enum number that this build does not know, and as of CheckRotary.
absl::StatusOr<simd::RotaryEmbedding> FromMessage(const v1::RotaryEmbedding& message);

// The message has only the tensor's name; `tensor`, with its `elements`, is what it reports on.
TensorReport FromMessage(const v1::TensorReport& message, TensorDesc tensor, uint64_t elements);
// Without quality, violations and sums.
void ToMessage(const TensorReport& report, v1::TensorReport& message);
// With all of them.
void ToMessage(const TensorReport& report, const Quality& quality, std::vector<Violation> violations,
               v1::TensorReport& message);
void ToMessage(const Quality& quality, std::optional<QualityLevel> level, v1::Quality& message);

ErrorSums FromMessage(const v1::ErrorSums& message);
void ToMessage(const ErrorSums& sums, v1::ErrorSums& message);

// `to_buffers`: the output goes to buffers that the client gives.
v1::CompressHeader MakeHeader(const TensorDesc& tensor, std::string codec, bool to_buffers);
// `fingerprint`: that the frame must have; empty: any.
v1::DecompressHeader MakeHeader(std::string name, bool to_buffers, std::string fingerprint = "");

}  // namespace kvcompress
