#pragma once

#include "absl/status/statusor.h"
#include "core/base/tensor.h"
#include "core/safetensors/safetensors.h"

// A safetensors file as an input of compression.
namespace kvcompress {

// The entry as a tensor, its axes by its name. INVALID_ARGUMENT ("unsupported data type: X") for none of kAllDTypes.
absl::StatusOr<TensorDesc> DescribeEntry(const safetensors::Entry& entry);

// INVALID_ARGUMENT for a file that is compressed already, or whose metadata uses our keys.
absl::Status CheckPlainMetadata(const safetensors::Header& header);

}  // namespace kvcompress
