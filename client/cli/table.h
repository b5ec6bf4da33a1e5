#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kvcompress {

// Rows of cells; the columns before the last are padded, on the left those that `right` names.
std::string FormatTable(const std::vector<std::vector<std::string>>& rows, const std::vector<bool>& right);

// `text` in quotes, with everything escaped that a terminal would act upon.
std::string Printable(std::string_view text);

}  // namespace kvcompress
