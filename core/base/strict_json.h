#pragma once

#include <cstddef>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/base/float_environment.h"

namespace kvcompress {

namespace json_internal {

// Counts the bytes that the parser has read: it tells a handler of keys nothing of where they are.
struct CountingIterator {
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  const char& operator*() const { return *at; }
  CountingIterator& operator++() {
    ++at;
    ++*read;
    return *this;
  }
  bool operator==(const CountingIterator& other) const { return at == other.at; }
  bool operator!=(const CountingIterator& other) const { return at != other.at; }

  const char* at;
  size_t* read;
};

// Receives the parser's events, and stops it at the first fault.
class Checker final : public nlohmann::json::json_sax_t {
 public:
  explicit Checker(std::string_view text) : text_(text) {}

  absl::Status Check() {
    // The parser would take it for the end of its input.
    if (const size_t zero = text_.find('\0'); zero != text_.npos) {
      Fail("a zero byte", zero + 1);
      return fault_;
    }
    const CountingIterator begin{text_.data(), &read_}, end{text_.data() + text_.size(), &read_};
    nlohmann::json::sax_parse(begin, end, this);
    return fault_;
  }

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_array(size_t) override { return true; }
  bool end_array() override { return true; }
  bool start_object(size_t) override {
    keys_.emplace_back();
    path_.emplace_back();
    return true;
  }
  bool end_object() override {
    keys_.pop_back();
    path_.pop_back();
    return true;
  }
  bool key(string_t& value) override {
    path_.back() = value;
    return keys_.back().insert(value).second || Fail(absl::StrCat("the second \"", value, "\" of an object"), read_);
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    if (position <= text_.size()) return Fail("a syntax error", position) || AddPath();
    fault_ = absl::InvalidArgumentError("not valid JSON: it ends too early");
    return false;
  }

 private:
  bool Fail(absl::string_view what, size_t byte) {
    fault_ = absl::InvalidArgumentError(absl::StrCat("not valid JSON: ", what, " at byte ", byte));
    return false;
  }

  // Where in nested objects the fault is.
  bool AddPath() {
    if (path_.size() > 1)
      fault_ = absl::InvalidArgumentError(absl::StrCat(fault_.message(), ", in ", absl::StrJoin(path_, ".")));
    return false;
  }

  const std::string_view text_;
  size_t read_ = 0;
  std::vector<std::set<std::string>> keys_;  // of the objects around
  std::vector<std::string> path_;            // the last key of each of these
  absl::Status fault_;
};

}  // namespace json_internal

// What `text` says, as one JSON value. Stricter than the library, which takes a zero byte for the end of the text and
// the last of several keys of one name: both are INVALID_ARGUMENT, as a syntax error is: "not valid JSON: WHAT at byte
// N", of a syntax error in nested objects also ", in KEY.KEY".
inline absl::StatusOr<nlohmann::json> ParseStrictJson(std::string_view text) {
  // The library reads numbers by std::strtod, which rounds as the caller does.
  const UsualFloatEnvironment environment;
  if (absl::Status fault = json_internal::Checker(text).Check(); !fault.ok()) return fault;
  return nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
}

}  // namespace kvcompress
