#include "client/cli/go_flags.h"

#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdlib>

#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"

namespace kvcompress {

bool ParseBool(const std::string& text, bool& value) {
  static const std::map<std::string_view, bool> kWords = {
      {"1", true},  {"t", true},  {"T", true},  {"true", true},   {"TRUE", true},   {"True", true},
      {"0", false}, {"f", false}, {"F", false}, {"false", false}, {"FALSE", false}, {"False", false}};
  const auto word = kWords.find(text);
  if (word == kWords.end()) return false;
  value = word->second;
  return true;
}

namespace {

constexpr std::string_view kOk;
constexpr std::string_view kParseError = "parse error";
constexpr std::string_view kRangeError = "value out of range";

std::string_view SetBool(const std::string& text, bool& value) { return ParseBool(text, value) ? kOk : kParseError; }

// Decimal, 0x, 0o, 0b, or a leading 0 for octal, with a sign.
std::string_view SetInt(const std::string& text, int64_t& value) {
  std::string digits = text;
  const bool negative = digits.starts_with('-');
  if (negative || digits.starts_with('+')) digits.erase(0, 1);
  int base = 10;
  if (digits.size() > 1 && digits[0] == '0') {
    const char letter = static_cast<char>(digits[1] | 0x20);
    base = letter == 'x' ? 16 : letter == 'b' ? 2 : 8;
    digits.erase(0, letter == 'x' || letter == 'o' || letter == 'b' ? 2 : 1);
  }
  uint64_t magnitude = 0;
  const char* const end = digits.data() + digits.size();
  const auto [stop, error] = std::from_chars(digits.data(), end, magnitude, base);
  if (stop != end || error == std::errc::invalid_argument) return kParseError;
  const uint64_t limit = negative ? uint64_t{1} << 63 : INT64_MAX;
  if (error == std::errc::result_out_of_range || magnitude > limit) return kRangeError;
  value = static_cast<int64_t>(negative ? 0 - magnitude : magnitude);
  return kOk;
}

std::string_view SetFloat(const std::string& text, double& value) {
  if (text.empty() || std::isspace(static_cast<unsigned char>(text[0]))) return kParseError;
  char* end = nullptr;
  const double parsed = std::strtod(text.c_str(), &end);
  if (end != text.c_str() + text.size() || text.find('(') != text.npos) return kParseError;
  const bool wrote_digits = text.find_first_of("0123456789") != text.npos;
  if (std::isinf(parsed) && wrote_digits) return kRangeError;
  value = parsed;
  return kOk;
}

std::string_view SetDuration(const std::string& text, absl::Duration& value) {
  absl::Duration parsed;
  const bool finite = text.find("inf") == text.npos;
  if (!finite || !absl::ParseDuration(text, &parsed)) return kParseError;
  value = parsed;
  return kOk;
}

}  // namespace

void GoFlags::Group(std::string_view title, std::string_view example) {
  groups_.push_back({.heading = absl::StrFormat("\n%s: %s\n", title, example), .flags = {}});
}

void GoFlags::Declare(std::string_view name, std::string_view kind, std::string_view usage, std::string shown_default,
                      std::function<std::string_view(const std::string&)> set) {
  groups_.back().flags.emplace_back(name);
  flags_.emplace(name, Flag{std::string(kind), std::string(usage), std::move(shown_default), std::move(set)});
}

void GoFlags::String(std::string_view name, std::string* value, std::string_view kind, std::string_view usage) {
  Declare(name, kind, usage, value->empty() ? "" : absl::StrFormat("\"%s\"", *value), [value](const std::string& text) {
    *value = text;
    return kOk;
  });
}

void GoFlags::Bool(std::string_view name, bool* value, std::string_view usage) {
  Declare(name, "", usage, *value ? "true" : "", [value](const std::string& text) { return SetBool(text, *value); });
}

void GoFlags::Int(std::string_view name, int64_t* value, std::string_view usage) {
  Declare(name, "int", usage, *value != 0 ? absl::StrFormat("%d", *value) : "",
          [value](const std::string& text) { return SetInt(text, *value); });
}

void GoFlags::Float(std::string_view name, double* value, std::string_view usage) {
  Declare(name, "float", usage, *value != 0 ? absl::StrFormat("%g", *value) : "",
          [value](const std::string& text) { return SetFloat(text, *value); });
}

void GoFlags::Duration(std::string_view name, absl::Duration* value, std::string_view usage) {
  Declare(name, "duration", usage, *value != absl::ZeroDuration() ? absl::FormatDuration(*value) : "",
          [value](const std::string& text) { return SetDuration(text, *value); });
}

absl::Status GoFlags::SetFlag(const std::string& name, Flag& flag, const std::string& value) {
  const std::string_view fault = flag.set(value);
  flag.is_set = true;
  if (fault.empty()) return absl::OkStatus();
  const bool is_bool = flag.kind.empty();
  return absl::InvalidArgumentError(absl::StrFormat("invalid %s \"%s\" for %s-%s: %s",
                                                    is_bool ? "boolean value" : "value", value, is_bool ? "" : "flag ",
                                                    name, fault));
}

absl::Status GoFlags::Parse(std::span<const char* const> words) {
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string word = words[i];
    if (word.size() < 2 || word[0] != '-') {
      rest_.assign(words.begin() + i, words.end());
      return absl::OkStatus();
    }
    if (word == "--") {
      rest_.assign(words.begin() + i + 1, words.end());
      return absl::OkStatus();
    }
    const std::string text = word.substr(word[1] == '-' ? 2 : 1);
    if (text.empty() || text[0] == '-' || text[0] == '=') {
      return absl::InvalidArgumentError(absl::StrFormat("bad flag syntax: %s", word));
    }
    const size_t equals = text.find('=');
    const std::string name = text.substr(0, equals);
    const auto found = flags_.find(name);
    if (found == flags_.end()) {
      help_ = name == "h" || name == "help";
      if (help_) return absl::OkStatus();
      return absl::InvalidArgumentError(absl::StrFormat("flag provided but not defined: -%s", name));
    }
    Flag& flag = found->second;
    if (equals != text.npos) {
      KVC_RETURN_IF_ERROR(SetFlag(name, flag, text.substr(equals + 1)));
    } else if (flag.kind.empty()) {
      KVC_RETURN_IF_ERROR(SetFlag(name, flag, "true"));
    } else if (++i < words.size()) {
      KVC_RETURN_IF_ERROR(SetFlag(name, flag, words[i]));
    } else {
      return absl::InvalidArgumentError(absl::StrFormat("flag needs an argument: -%s", name));
    }
  }
  return absl::OkStatus();
}

bool GoFlags::IsSet(std::string_view name) const {
  const auto flag = flags_.find(name);
  return flag != flags_.end() && flag->second.is_set;
}

std::vector<std::string> GoFlags::given() const {
  std::vector<std::string> names;
  for (const auto& [name, flag] : flags_) {
    if (flag.is_set) names.push_back(name);
  }
  return names;
}

std::string GoFlags::Usage() const {
  std::string text = absl::StrFormat("Usage of %s:\n", program_);
  for (const FlagGroup& group : groups_) {
    text += group.heading;
    for (const std::string& name : group.flags) {
      const Flag& flag = flags_.at(name);
      absl::StrAppendFormat(&text, "  -%s%s%s\n    \t%s", name, flag.kind.empty() ? "" : " ", flag.kind, flag.usage);
      if (!flag.shown_default.empty()) absl::StrAppendFormat(&text, " (default %s)", flag.shown_default);
      text += '\n';
    }
  }
  return text;
}

}  // namespace kvcompress
