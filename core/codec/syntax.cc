#include "core/codec/syntax.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"

namespace kvcompress {
namespace {

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  absl::StatusOr<std::vector<StageText>> Parse() {
    std::vector<StageText> stages;
    do {
      StageText stage;
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
  absl::Status ParseArg(StageText& stage) {
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

  absl::Status ParsePart(StageText& stage) {
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
  static bool IsValueChar(char c) {
    return absl::ascii_isalnum(c) || std::string_view("_./+-").find(c) != std::string_view::npos;
  }
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

absl::StatusOr<std::vector<StageText>> ParseSyntax(std::string_view text) {
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

}  // namespace kvcompress
