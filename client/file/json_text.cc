#include "client/file/json_text.h"

#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/base/file.h"
#include "core/base/status_macros.h"

namespace kvcompress {

using Json = nlohmann::json;

absl::StatusOr<Json> ReadJsonObject(const std::string& path) {
  constexpr uint64_t kMaxBytes = 100'000'000;
  KVC_ASSIGN_OR_RETURN(const std::unique_ptr<FileSource> file, FileSource::Open(path));
  if (file->size() > kMaxBytes) return absl::InvalidArgumentError(absl::StrCat(path, ": JSON of more than 100 MB"));
  std::vector<std::byte> scratch;
  KVC_ASSIGN_OR_RETURN(const ByteSpan bytes, file->Get(0, file->size(), scratch));
  const std::string_view text = AsText(bytes);

  std::vector<std::set<std::string>> keys;  // of the objects that are open
  std::string twice;
  const auto watch = [&](int, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second) {
      twice = parsed.get<std::string>();
    }
    return true;
  };
  // The library takes a NUL for the end of the text.
  const bool has_nul = text.find('\0') != text.npos;
  Json json = has_nul ? Json(nullptr) : Json::parse(text, watch, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": not a JSON object"));
  if (!twice.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": \"", twice, "\" is given twice"));
  return json;
}

}  // namespace kvcompress
