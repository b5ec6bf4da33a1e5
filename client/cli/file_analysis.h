#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/byte_source.h"
#include "core/safetensors/safetensors.h"

namespace kvcompress {

struct Analysis {
  std::string text;
  std::vector<std::string> warnings = {};  // a line each
};

// Tables, for people, of what the values of the file's F16, BF16 and F32 tensors are like: distribution, entropies,
// bounds on the lossless ratio, outliers, correlation, and what int4 would keep of them. With `rope_theta` above 0 keys
// are also shown with that rotary embedding undone. Of a large file only evenly spaced parts are read; the text then
// says so.
absl::StatusOr<Analysis> AnalyzeFile(const ByteSource& file, const safetensors::Header& header, double rope_theta);

}  // namespace kvcompress
