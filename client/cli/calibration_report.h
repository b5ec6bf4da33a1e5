#pragma once

#include <string>
#include <vector>

#include "client/file/calibrate.h"

// What the command line tells of a calibration.
namespace kvcompress {

// The JSON object (docs/cli.md).
std::string CalibrationJson(const CalibrationReport& report, const std::string& output, double milliseconds);

// What a user should know of it: a line each, which the JSON has as "warnings", too.
std::vector<std::string> CalibrationWarnings(const CalibrationReport& report);

// A line for each tensor.
std::string CalibrationLines(const Calibration& calibration);

}  // namespace kvcompress
