#include "core/base/bandwidth.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"

namespace kvcompress {
namespace {

using Scale = std::pair<std::string_view, double>;

constexpr std::array<Scale, 8> kPrefixes = {
    {{"", 1}, {"k", 1e3}, {"M", 1e6}, {"G", 1e9}, {"T", 1e12}, {"Ki", 0x1p10}, {"Mi", 0x1p20}, {"Gi", 0x1p30}}};
constexpr std::array<Scale, 4> kUnits = {{{"bit/s", 0.125}, {"b/s", 0.125}, {"bps", 0.125}, {"B/s", 1}}};

// Bytes a second of one of the unit; 0 for no unit.
double UnitBytes(std::string_view unit) {
  for (const auto& [name, bytes] : kUnits) {
    if (!unit.ends_with(name)) continue;
    const auto* const prefix = std::ranges::find(kPrefixes, unit.substr(0, unit.size() - name.size()), &Scale::first);
    if (prefix != kPrefixes.end()) return prefix->second * bytes;
  }
  return 0;
}

// Without those that lead it.
std::string_view WithoutBlanks(std::string_view text) {
  return text.substr(std::min(text.find_first_not_of(' '), text.size()));
}

}  // namespace

absl::StatusOr<double> ParseBandwidth(std::string_view text) {
  const std::string_view rest = WithoutBlanks(text);
  double number = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), number);
  const std::string_view unit = WithoutBlanks(rest.substr(static_cast<size_t>(end - rest.data())));
  const double bytes = number * UnitBytes(unit);
  if (error == std::errc() && bytes >= kMinBandwidth && bytes <= kMaxBandwidth) return bytes;
  return absl::InvalidArgumentError(absl::StrFormat(
      "\"%s\" is no bandwidth: expected a number above 0 and a unit, bit/s (b/s, bps) or B/s after k, M, "
      "G, T, Ki, Mi or Gi, for example 25Gbit/s, 800Mb/s or 3GB/s, between 1bit/s and 1000TB/s",
      text));
}

}  // namespace kvcompress
