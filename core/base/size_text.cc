#include "core/base/size_text.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_format.h"

namespace kvcompress {

std::string SizeText(uint64_t bytes) {
  std::string text = absl::StrFormat("%d bytes", bytes);
  constexpr std::pair<const char*, int> kUnits[] = {{"TiB", 40}, {"GiB", 30}, {"MiB", 20}, {"KiB", 10}};
  for (const auto& [unit, shift] : kUnits) {
    if (bytes >> shift == 0) continue;
    absl::StrAppendFormat(&text, " (%.4g %s)", std::ldexp(static_cast<double>(bytes), -shift), unit);
    break;
  }
  return text;
}

}  // namespace kvcompress
