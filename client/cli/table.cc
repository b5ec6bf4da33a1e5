#include "client/cli/table.h"

#include <algorithm>

namespace kvcompress {

// Wider cells stand out of their column: names in a file may be of any length.
constexpr size_t kMaxWidth = 100;

std::string FormatTable(const std::vector<std::vector<std::string>>& rows, const std::vector<bool>& right) {
  std::vector<size_t> widths(right.size(), 0);
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], std::min(row[i].size(), kMaxWidth));
  }
  std::string text;
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - std::min(row[i].size(), widths[i]), ' ');
      const bool last = i + 1 == row.size();
      text += right[i] ? padding + row[i] : last ? row[i] : row[i] + padding;
      text += last ? "\n" : "  ";
    }
  }
  return text;
}

}  // namespace kvcompress
