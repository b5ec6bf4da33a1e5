#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cli/analysis_table.h"
#include "client/file/file_codec.h"
#include "client/file/input.h"

// What the command line prints on standard output.
namespace kvcompress {

// The JSON object of a run: the reference tool's keys in its order, then ours. Without quality (decompression) the
// figures that cannot be known are null and the level is "UNKNOWN"; without tensors there is no level. `per_tensor`
// adds tensor_metrics.
std::string ReportJson(const FileReport& report, bool with_quality, bool per_tensor, double milliseconds);

// What a user should know of a run that compressed: a line each, which the JSON has as "warnings", too.
std::vector<std::string> ReportWarnings(const FileReport& report);

// What a safetensors file holds, for people: of a compressed file, what its frames say of themselves; of any other,
// what its values are like (analysis_table.h).
absl::StatusOr<Analysis> Inspect(const Input& file, double rope_theta);

}  // namespace kvcompress
