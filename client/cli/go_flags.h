#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace kvcompress {

// Reads a bool as Go's strconv does. False for any other text; `value` then stays as it is.
bool ParseBool(const std::string& text, bool& value);

// Command-line flags by the rules of Go's `flag` package: -name and --name, "-name value" or "-name=value", a bool is
// "-name" or "-name=true|false|1|0|t|f"; parsing stops at "--" or at the first word that is not a flag; the last of
// repeated flags wins.
class GoFlags {
 public:
  explicit GoFlags(std::string_view program) : program_(program) {}

  // The flags declared from here on belong together in the usage, below this title and an example.
  void Group(std::string_view title, std::string_view example);

  // Each declares a flag whose value goes to `*value`, which holds the default until then. `kind` is the value's name
  // in the usage.
  void String(std::string_view name, std::string* value, std::string_view kind, std::string_view usage);
  void Bool(std::string_view name, bool* value, std::string_view usage);
  void Int(std::string_view name, int64_t* value, std::string_view usage);
  void Float(std::string_view name, double* value, std::string_view usage);
  void Duration(std::string_view name, absl::Duration* value, std::string_view usage);

  // Parses the command line without the program's name. INVALID_ARGUMENT with Go's text. -h and -help end it with OK.
  absl::Status Parse(std::span<const char* const> words);

  bool help() const { return help_; }
  bool IsSet(std::string_view name) const;
  std::vector<std::string> given() const;                         // names of the flags that are set, sorted
  const std::vector<std::string>& rest() const { return rest_; }  // the words after the flags

  // Each flag as Go prints it, with a default that is not zero; in groups, in the order in which they were declared.
  std::string Usage() const;

 private:
  struct Flag {
    std::string kind;  // empty for a bool
    std::string usage;
    std::string shown_default;                                // empty: none is shown
    std::function<std::string_view(const std::string&)> set;  // returns a fault, or nothing
    bool is_set = false;
  };

  struct FlagGroup {
    std::string heading;  // empty for the flags before the first group
    std::vector<std::string> flags;
  };

  void Declare(std::string_view name, std::string_view kind, std::string_view usage, std::string shown_default,
               std::function<std::string_view(const std::string&)> set);
  absl::Status SetFlag(const std::string& name, Flag& flag, const std::string& value);

  std::string program_;
  std::map<std::string, Flag, std::less<>> flags_;
  std::vector<FlagGroup> groups_ = {{}};
  std::vector<std::string> rest_;
  bool help_ = false;
};

}  // namespace kvcompress
