#pragma once

#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// What texts of settings mean. INVALID_ARGUMENT for any other text, with words that say what was expected.
namespace kvcompress {

absl::StatusOr<uint64_t> ParseCount(const std::string& text, uint64_t min, uint64_t max);
absl::StatusOr<uint64_t> ParseBytes(const std::string& text);
// At least what one block takes.
absl::StatusOr<uint64_t> ParseBudget(const std::string& text);
absl::StatusOr<std::chrono::milliseconds> ParseDuration(const std::string& text);
// Bytes a second; 0: not known.
absl::StatusOr<double> ParseLink(const std::string& text);
absl::StatusOr<std::string> ParseOneOf(const std::string& text, std::initializer_list<std::string_view> allowed);
absl::StatusOr<bool> ParseBool(const std::string& text);
// Permissions, in octal.
absl::StatusOr<uint32_t> ParseMode(const std::string& text);
// An empty name, perhaps from a variable that is not set, must not turn off what protects the daemon.
absl::StatusOr<std::string> ParseFileName(const std::string& text);
bool IsHostAndPort(const std::string& text);
// What a client can connect to, or nothing. gRPC would not say why it cannot.
absl::StatusOr<std::string> ParseTarget(const std::string& text);
// Appends the addresses of a list with commas.
absl::Status AddListenAddresses(const std::string& text, std::vector<std::string>& listen);
absl::Status CheckKeyPrefix(const std::string& prefix);

}  // namespace kvcompress
