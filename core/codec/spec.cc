#include "core/codec/spec.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/base/status_macros.h"

namespace kvcompress {
namespace {

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  absl::StatusOr<std::vector<StageSpec>> Parse() {
    std::vector<StageSpec> stages;
    do {
      StageSpec stage;
      stage.name = Word(IsNameChar);
      if (!IsName(stage.name)) return Fault("a codec's name");
      if (Eat('(') && !Eat(')')) {
        do {
          KVC_RETURN_IF_ERROR(IsNext(absl::ascii_isdigit) ? ParsePart(stage) : ParseArg(stage));
        } while (Eat(','));
        if (!Eat(')')) return Fault("',' or ')'");
      }
      stages.push_back(std::move(stage));
    } while (Eat('|'));
    if (at_ != text_.size()) return Fault("'|' or the end");
    return stages;
  }

 private:
  absl::Status ParseArg(StageSpec& stage) {
    std::string key = Word(IsNameChar);
    if (!IsName(key)) return Fault("a parameter's name");
    if (!Eat('=')) return Fault("'='");
    std::string value = Word(IsValueChar);
    if (value.empty()) return Fault("a value");
    for (const auto& [other, unused] : stage.args) {
      if (other == key) {
        return absl::InvalidArgumentError(absl::StrFormat("codec spec \"%s\": %s is given twice", text_, key));
      }
    }
    stage.args.emplace_back(std::move(key), std::move(value));
    return absl::OkStatus();
  }

  absl::Status ParsePart(StageSpec& stage) {
    std::string label = Word(IsLabelChar);
    if (!Eat(':')) return Fault("':'");
    const size_t begin = at_;
    bool in_parentheses = false;
    for (; at_ < text_.size(); ++at_) {
      const char c = text_[at_];
      if (c == '(' && std::exchange(in_parentheses, true)) return Fault("no parenthesis within another's");
      if (!in_parentheses && (c == ',' || c == ')')) break;
      if (c == ')') in_parentheses = false;
    }
    stage.parts.push_back({std::move(label), std::string(text_.substr(begin, at_ - begin))});
    return absl::OkStatus();
  }

  static bool IsNameChar(char c) { return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '_'; }
  static bool IsValueChar(char c) { return absl::ascii_isalnum(c) || c == '_' || c == '.' || c == '+' || c == '-'; }
  static bool IsLabelChar(char c) { return absl::ascii_isdigit(c) || c == '-'; }
  static bool IsName(std::string_view word) { return !word.empty() && absl::ascii_islower(word[0]); }

  void SkipBlanks() {
    while (at_ < text_.size() && text_[at_] == ' ') ++at_;
  }

  bool Eat(char c) {
    SkipBlanks();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    SkipBlanks();
    return true;
  }

  bool IsNext(bool (*is_part)(unsigned char)) const {
    return at_ < text_.size() && is_part(static_cast<unsigned char>(text_[at_]));
  }

  std::string Word(bool (*is_part)(char)) {
    SkipBlanks();
    const size_t begin = at_;
    while (at_ < text_.size() && is_part(text_[at_])) ++at_;
    std::string word(text_.substr(begin, at_ - begin));
    SkipBlanks();
    return word;
  }

  absl::Status Fault(std::string_view expected) const {
    return absl::InvalidArgumentError(
        absl::StrFormat("codec spec \"%s\": expected %s at character %d", text_, expected, at_ + 1));
  }

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

absl::StatusOr<std::vector<StageSpec>> ParseSpec(std::string_view text) {
  if (text.size() > kMaxSpecBytes) {
    return absl::InvalidArgumentError(
        absl::StrFormat("codec spec of %d bytes is above the limit of %d", text.size(), kMaxSpecBytes));
  }
  for (char c : text) {
    if (!absl::ascii_isprint(c))
      return absl::InvalidArgumentError("codec spec has a character that is not printable ASCII");
  }
  return Parser(text).Parse();
}

const std::string* StageArgs::Take(std::string_view key) {
  for (size_t i = 0; i < stage_.args.size(); ++i) {
    if (stage_.args[i].first != key) continue;
    taken_[i] = true;
    return &stage_.args[i].second;
  }
  return nullptr;
}

absl::StatusOr<int64_t> StageArgs::Int(std::string_view key, int64_t otherwise, int64_t min, int64_t max) {
  const std::string* text = Take(key);
  if (text == nullptr) return otherwise;
  int64_t value;
  if (!absl::SimpleAtoi(*text, &value) || value < min || value > max) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %s=%s is not an integer from %d to %d", stage_.name, key, *text, min, max));
  }
  return value;
}

absl::StatusOr<int64_t> StageArgs::IntOneOf(std::string_view key, int64_t otherwise,
                                            std::initializer_list<int64_t> allowed) {
  const std::string* text = Take(key);
  if (text == nullptr) return otherwise;
  int64_t value;
  if (!absl::SimpleAtoi(*text, &value) || std::find(allowed.begin(), allowed.end(), value) == allowed.end()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %s=%s is not one of %s", stage_.name, key, *text, absl::StrJoin(allowed, ", ")));
  }
  return value;
}

absl::StatusOr<std::string> StageArgs::OneOf(std::string_view key, std::string_view otherwise,
                                             std::initializer_list<const char*> allowed) {
  const std::string* text = Take(key);
  if (text == nullptr) return std::string(otherwise);
  if (std::find(allowed.begin(), allowed.end(), *text) == allowed.end()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %s=%s is not one of %s", stage_.name, key, *text, absl::StrJoin(allowed, ", ")));
  }
  return *text;
}

absl::StatusOr<double> StageArgs::Real(std::string_view key, double otherwise, double min, double max) {
  const std::string* text = Take(key);
  if (text == nullptr) return otherwise;
  double value;
  if (!absl::SimpleAtod(*text, &value) || !(value >= min && value <= max)) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: %s=%s is not a number from %s to %s", stage_.name, key,
                                                      *text, FormatReal(min), FormatReal(max)));
  }
  return value;
}

absl::Status StageArgs::Finish() const {
  if (!stage_.parts.empty() && !parts_taken_) {
    return absl::InvalidArgumentError(absl::StrFormat("%s has no chains within it", stage_.name));
  }
  for (size_t i = 0; i < stage_.args.size(); ++i) {
    if (!taken_[i]) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s has no parameter \"%s\"", stage_.name, stage_.args[i].first));
    }
  }
  return absl::OkStatus();
}

std::string FormatReal(double value) {
  std::array<char, 32> text;
  const auto [end, error] = std::to_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() ? std::string(text.data(), end) : "?";
}

}  // namespace kvcompress
