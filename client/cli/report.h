#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cli/file_analysis.h"
#include "client/file/file_codec.h"
#include "client/file/input.h"
#include "core/profile/profile.h"

// What the command line prints on standard output.
namespace kvcompress {

// The JSON object of a run: the reference tool's keys in its order, then ours. Without quality (decompression) the
// figures that cannot be known are null and the level is "UNKNOWN"; without tensors there is no level. `per_tensor`
// adds tensor_metrics.
std::string ReportJson(const FileReport& report, bool with_quality, bool per_tensor, double milliseconds);

// What a user should know of a run that compressed: a line each, which the JSON has as "warnings", too.
std::vector<std::string> ReportWarnings(const FileReport& report);

// Where what a profile says of layers is said of none in the file.
std::vector<std::string> ProfileWarnings(const Profile& profile, const FileReport& report);

enum class InspectFormat { kTable, kJson, kCsv };

struct InspectOptions {
  InspectFormat format = InspectFormat::kTable;
  AnalysisOptions analysis = {};
};

struct Inspection {
  std::string text;
  std::vector<std::string> warnings = {};  // a line each
};

// What a safetensors file holds, as a table for people or as data (inspect_data.h): of a compressed file, what its
// frames say of themselves; of any other, what its values are like (file_analysis.h).
absl::StatusOr<Inspection> Inspect(const Input& file, const InspectOptions& options);

}  // namespace kvcompress
