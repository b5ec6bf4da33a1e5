#pragma once

#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "core/quality/quality.h"
#include "core/tensor_report.h"
#include "kvcompress/v1/kvcompress.pb.h"

// Between the core's types and the service's messages.
namespace kvcompress {

// INVALID_ARGUMENT for enum numbers that this build does not know; the rest is checked by ValidateTensor.
absl::StatusOr<TensorDesc> FromMessage(const v1::Tensor& message);

void ToMessage(const TensorDesc& tensor, v1::Tensor& message);
// Without quality, violations and sums.
void ToMessage(const TensorReport& report, v1::TensorReport& message);
// With all of them.
void ToMessage(const TensorReport& report, const Quality& quality, const std::vector<Violation>& violations,
               v1::TensorReport& message);
void ToMessage(const Quality& quality, v1::Quality& message);
void ToMessage(const ErrorSums& sums, v1::ErrorSums& message);

}  // namespace kvcompress
