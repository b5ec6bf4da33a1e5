#include "client/cli/printable.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "core/base/utf8.h"

namespace kvcompress {
namespace {

// The character that `text` begins with; empty where it begins with none.
std::string_view FirstCharacter(std::string_view text) {
  for (size_t length = 1; length <= 4 && length <= text.size(); ++length) {
    if (IsUtf8(text.substr(0, length))) return text.substr(0, length);
  }
  return {};
}

bool IsC1(std::string_view character) {
  return character.size() == 2 && character[0] == '\xc2' && static_cast<unsigned char>(character[1]) < 0xa0;
}

}  // namespace

std::string OneLine(std::string_view text) {
  std::string line;
  while (!text.empty()) {
    const std::string_view character = FirstCharacter(text);
    const auto byte = static_cast<unsigned char>(text[0]);
    if (character.empty() || byte < 0x20 || byte == 0x7f) {
      line += absl::StrFormat("\\x%02x", byte);
    } else if (IsC1(character)) {
      line += absl::StrFormat("\\u%04x", static_cast<unsigned char>(character[1]));
    } else {
      line += character;
    }
    text.remove_prefix(std::max<size_t>(character.size(), 1));
  }
  return line;
}

std::string Printable(std::string_view text) {
  return OneLine(nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

}  // namespace kvcompress
