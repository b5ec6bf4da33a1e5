#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "client/file/calibrate.h"

// What the command line tells of a calibration.
namespace kvcompress {

// The JSON object (docs/cli.md).
std::string CalibrationJson(const CalibrationReport& report, const std::string& output, double milliseconds);

// What a user should know of it: a line each, which the JSON has as "warnings", too.
std::vector<std::string> CalibrationWarnings(const CalibrationReport& report, std::string_view output);

// A line for each tensor.
std::string CalibrationLines(const CalibrationReport& report);

}  // namespace kvcompress
