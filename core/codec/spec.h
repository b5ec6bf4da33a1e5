#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace kvcompress {

// Longest text of a codec chain.
inline constexpr size_t kMaxSpecBytes = 512;

// One stage of a chain as people write it: `name`, `name(key=value, key=value)`, or `name(label:chain, label:chain)`.
struct StageSpec {
  // A chain within a stage.
  struct Part {
    std::string label;
    std::string chain;
  };

  std::string name;
  std::vector<std::pair<std::string, std::string>> args;
  std::vector<Part> parts = {};
};

// Parses "stage|stage|...": names and keys are [a-z][a-z0-9_]*, values [A-Za-z0-9_.+-]+, labels [0-9][0-9-]*, blanks
// are free. The chains of parts are cut out, not parsed; their stages may have parentheses, but none within these.
// INVALID_ARGUMENT with the place of the fault.
absl::StatusOr<std::vector<StageSpec>> ParseSpec(std::string_view text);

// Takes the arguments of a stage one by one; Finish refuses the ones that nobody took.
class StageArgs {
 public:
  explicit StageArgs(const StageSpec& stage) : stage_(stage), taken_(stage.args.size(), false) {}

  absl::StatusOr<int64_t> Int(std::string_view key, int64_t otherwise, int64_t min, int64_t max);
  absl::StatusOr<int64_t> IntOneOf(std::string_view key, int64_t otherwise, std::initializer_list<int64_t> allowed);
  absl::StatusOr<std::string> OneOf(std::string_view key, std::string_view otherwise,
                                    std::initializer_list<const char*> allowed);
  absl::StatusOr<double> Real(std::string_view key, double otherwise, double min, double max);
  const std::vector<StageSpec::Part>& Parts() {
    parts_taken_ = true;
    return stage_.parts;
  }
  absl::Status Finish() const;

 private:
  const std::string* Take(std::string_view key);

  const StageSpec& stage_;
  std::vector<bool> taken_;
  bool parts_taken_ = false;
};

// The shortest text that reads back as `value`.
std::string FormatReal(double value);

}  // namespace kvcompress
