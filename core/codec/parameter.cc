#include "core/codec/parameter.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <optional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

namespace kvcompress {
namespace {

absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }

// Calls visit(place, choice) for each of "a|b|c" until it returns true.
template <typename Visit>
void ForEachChoice(std::string_view choices, Visit visit) {
  for (size_t place = 0, begin = 0; begin <= choices.size(); ++place) {
    const size_t end = std::min(choices.find('|', begin), choices.size());
    if (visit(place, choices.substr(begin, end - begin))) return;
    begin = end + 1;
  }
}

}  // namespace

// The number that a choice, at its place, stands for.
double Parameter::ValueOf(size_t place, std::string_view choice) const {
  if (kind == Kind::kFlag) return choice == "true";
  int64_t integer = static_cast<int64_t>(place);
  if (kind == Kind::kIntegerOf) (void)absl::SimpleAtoi(ToAbsl(choice), &integer);
  return static_cast<double>(integer);
}

absl::StatusOr<double> Parameter::Parse(std::string_view codec, std::string_view text) const {
  const auto fault = [&](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: %s=%s is not %s", codec, name, text, what));
  };
  const auto range = [&] { return absl::StrFormat("from %s to %s", Print(min), Print(max)); };
  if (kind == Kind::kDigest) {
    if (text.size() == 32 && text.find_first_not_of("0123456789abcdef") == text.npos) return 1;
    return fault("32 hex digits");
  }
  if (kind == Kind::kList) {
    for (const absl::string_view number : absl::StrSplit(ToAbsl(text), '/')) {
      int64_t integer = 0;
      const bool is_integer = absl::SimpleAtoi(number, &integer);
      const auto value = static_cast<double>(integer);
      if (is_integer && value >= min && value <= max) continue;
      return fault(absl::StrFormat("integers from %s to %s with / between", FormatReal(min), FormatReal(max)));
    }
    return 1;
  }
  int64_t integer = 0;
  const bool is_integer = absl::SimpleAtoi(ToAbsl(text), &integer);
  double value = static_cast<double>(integer);
  if (kind == Kind::kInteger) {
    if (!is_integer || value < min || value > max) return fault("an integer " + range());
    return value;
  }
  if (kind == Kind::kReal) {
    if (!absl::SimpleAtod(ToAbsl(text), &value) || !(value >= min && value <= max)) return fault("a number " + range());
    return value;
  }
  std::optional<double> found;
  ForEachChoice(choices, [&](size_t place, std::string_view choice) {
    const double own = ValueOf(place, choice);
    if (kind == Kind::kIntegerOf ? is_integer && own == value : choice == text) found = own;
    return found.has_value();
  });
  if (!found) return fault("one of " + absl::StrReplaceAll(ToAbsl(choices), {{"|", ", "}}));
  return *found;
}

std::string Parameter::Print(double value) const {
  if (kind == Kind::kReal) return FormatReal(value);
  if (kind == Kind::kDigest || kind == Kind::kList) return "none";
  if (kind == Kind::kInteger) return std::to_string(static_cast<int64_t>(value));
  std::string text;
  ForEachChoice(choices, [&](size_t place, std::string_view choice) {
    if (ValueOf(place, choice) == value) text = choice;
    return !text.empty();
  });
  return text;
}

std::string Parameter::Bounds() const {
  if (!choices.empty()) return std::string(choices);
  if (kind == Kind::kDigest) return "32 hex digits";
  if (kind == Kind::kList) return absl::StrFormat("%s..%s, with / between", FormatReal(min), FormatReal(max));
  return absl::StrFormat("%s..%s", Print(min), max == std::numeric_limits<float>::max() ? "" : Print(max));
}

std::vector<uint32_t> Parameter::ListOf(std::string_view text) {
  std::vector<uint32_t> list;
  for (const absl::string_view number : absl::StrSplit(ToAbsl(text), '/')) {
    uint32_t value = 0;
    (void)absl::SimpleAtoi(number, &value);
    list.push_back(value);
  }
  return list;
}

std::string FormatReal(double value) {
  std::array<char, 32> text;
  const auto [end, error] = std::to_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() ? std::string(text.data(), end) : "?";
}

}  // namespace kvcompress
