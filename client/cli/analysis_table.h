#pragma once

#include <string>

#include "client/cli/file_analysis.h"

namespace kvcompress {

// The analysis as tables, for people: distribution, coding, what int4 would keep, and where there is any, what undoing
// the rotation changed and what a cast would cost. Empty without values.
std::string AnalysisTables(const FileAnalysis& analysis);

}  // namespace kvcompress
