#pragma once

#include <string>
#include <vector>

namespace kvcompress {

// Rows of cells; the columns before the last are padded, on the left those that `right` names.
std::string FormatTable(const std::vector<std::vector<std::string>>& rows, const std::vector<bool>& right);

}  // namespace kvcompress
