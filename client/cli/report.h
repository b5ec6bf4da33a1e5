#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "client/file/file_codec.h"
#include "core/base/byte_source.h"

// What the command line prints on standard output.
namespace kvcompress {

// The JSON object of a run: the reference tool's keys in its order, then ours. Without quality (decompression) the
// figures that cannot be known are null and the level is "UNKNOWN". `per_tensor` adds tensor_metrics.
std::string ReportJson(const FileReport& report, bool with_quality, bool per_tensor, double milliseconds);

// A table of what a safetensors file holds, for people: of a compressed file, what its frames say of themselves; of any
// other, what its values are like (analysis_table.h).
absl::StatusOr<std::string> InspectTable(const ByteSource& file, double rope_theta);

}  // namespace kvcompress
