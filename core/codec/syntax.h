#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

// How people write codec chains, before anyone asks what the words mean.
namespace kvcompress {

// Longest text of a codec chain.
inline constexpr size_t kMaxSpecBytes = 512;

// One stage: `name`, `name(key=value, key=value)`, or `name(label:chain, label:chain)`.
struct StageText {
  // A chain within a stage.
  struct Part {
    std::string label;
    std::string chain;
  };

  std::string name;
  std::vector<std::pair<std::string, std::string>> args = {};
  std::vector<Part> parts = {};
};

// Parses "stage|stage|...": names and keys are [a-z][a-z0-9_]*, values [A-Za-z0-9_./+-]+, labels [0-9][0-9-]*, blanks
// are free. The chains of parts are cut out, not parsed; their stages may have parentheses, but none within these.
// INVALID_ARGUMENT with the place of the fault.
absl::StatusOr<std::vector<StageText>> ParseSyntax(std::string_view text);

}  // namespace kvcompress
