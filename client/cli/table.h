#pragma once

#include <string>
#include <vector>

namespace kvcompress {

// Formats rows of cells in columns; `right` says which columns are aligned to the right.
std::string FormatTable(const std::vector<std::vector<std::string>>& rows, const std::vector<bool>& right);

}  // namespace kvcompress
