#include "server/config/values.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "core/base/bandwidth.h"
#include "core/base/block_size.h"
#include "core/base/status_macros.h"
#include "server/net/address.h"

namespace kvcompress {
namespace {

absl::Status Expected(std::string_view what) { return absl::InvalidArgumentError(absl::StrFormat("%s", what)); }

absl::Status CheckUnixPath(const std::string& address) {
  const size_t bytes = UnixPath(address).size();
  if (bytes > 0 && bytes <= kMaxUnixPathBytes) return absl::OkStatus();
  return Expected(absl::StrFormat("expected a path of 1 to %d bytes behind unix:", kMaxUnixPathBytes));
}

}  // namespace

absl::StatusOr<uint64_t> ParseCount(const std::string& text, uint64_t min, uint64_t max) {
  uint64_t value = 0;
  const bool digits = !text.empty() && absl::ascii_isdigit(text[0]);
  if (!digits || !absl::SimpleAtoi(text, &value) || value < min || value > max) {
    return Expected(absl::StrFormat("expected a number from %d to %d", min, max));
  }
  return value;
}

absl::StatusOr<uint64_t> ParseBytes(const std::string& text) {
  constexpr std::pair<const char*, int> kUnits[] = {{"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}};
  std::string digits = text;
  int shift = 0;
  for (const auto& [suffix, bits] : kUnits) {
    if (!absl::EndsWith(text, suffix)) continue;
    digits.resize(digits.size() - 3);
    shift = bits;
  }
  const absl::StatusOr<uint64_t> count = ParseCount(digits, 1, (uint64_t{1} << 50) >> shift);
  if (!count.ok()) return Expected("expected a number of bytes, at most 1024TiB, with or without KiB, MiB, GiB or TiB");
  return *count << shift;
}

absl::StatusOr<uint64_t> ParseBudget(const std::string& text) {
  absl::StatusOr<uint64_t> bytes = ParseBytes(text);
  if (!bytes.ok() || *bytes >= uint64_t{2} * kDefaultBlockElements * sizeof(float)) return bytes;
  return Expected("expected at least 1MiB, which one block of 131072 F32 values takes, as input and as output");
}

absl::StatusOr<std::chrono::milliseconds> ParseDuration(const std::string& text) {
  absl::Duration duration;
  if (!absl::ParseDuration(text, &duration) || duration < absl::ZeroDuration() || duration > absl::Hours(24)) {
    return Expected("expected a duration such as 30s or 1m30s, at most 24h");
  }
  return absl::ToChronoMilliseconds(duration);
}

absl::StatusOr<double> ParseLink(const std::string& text) {
  if (text == "0") return 0;
  return ParseBandwidth(text);
}

absl::StatusOr<std::string> ParseOneOf(const std::string& text, std::initializer_list<std::string_view> allowed) {
  std::string list;
  for (std::string_view word : allowed) {
    if (text == word) return text;
    absl::StrAppendFormat(&list, "%s%s", list.empty() ? "" : ", ", word);
  }
  return Expected(absl::StrFormat("expected one of %s", list));
}

absl::StatusOr<bool> ParseBool(const std::string& text) {
  if (text == "true" || text == "1") return true;
  if (text == "false" || text == "0") return false;
  return Expected("expected true or false");
}

absl::StatusOr<uint32_t> ParseMode(const std::string& text) {
  const bool octal = text.size() <= 4 && !text.empty() && text.find_first_not_of("01234567") == std::string::npos;
  const unsigned long mode = octal ? std::stoul(text, nullptr, 8) : ~0ul;
  if (mode > 0777) return Expected("expected permissions in octal, for example 0660");
  return static_cast<uint32_t>(mode);
}

absl::StatusOr<std::string> ParseFileName(const std::string& text) {
  if (text.empty()) return Expected("expected the name of a file");
  return text;
}

bool IsHostAndPort(const std::string& text) {
  const size_t colon = text.rfind(':');
  return colon != std::string::npos && colon > 0 && ParseCount(text.substr(colon + 1), 0, 65535).ok();
}

absl::StatusOr<std::string> ParseTarget(const std::string& text) {
  if (text.empty()) return text;
  if (IsUnixAddress(text)) {
    KVC_RETURN_IF_ERROR(CheckUnixPath(text));
  } else if (!IsHostAndPort(text) || SplitAddress(text).port == "0") {
    return Expected("expected HOST:PORT, with a port from 1 to 65535, or unix:PATH");
  }
  return text;
}

absl::Status AddListenAddresses(const std::string& text, std::vector<std::string>& listen) {
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    const std::string address(part);
    if (IsUnixAddress(address)) {
      KVC_RETURN_IF_ERROR(CheckUnixPath(address));
    } else if (!IsHostAndPort(address)) {
      return Expected("expected HOST:PORT or unix:PATH, for example 127.0.0.1:50051 or [::1]:0");
    }
    listen.push_back(address);
  }
  return absl::OkStatus();
}

absl::Status CheckKeyPrefix(const std::string& prefix) {
  const auto allowed = [](char c) { return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-'; };
  if (prefix.size() <= 128 && std::ranges::all_of(prefix, allowed)) return absl::OkStatus();
  return Expected("expected 1 to 128 characters of [A-Za-z0-9._-], for example kvcompress-, or off");
}

}  // namespace kvcompress
