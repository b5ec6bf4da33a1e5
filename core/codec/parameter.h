#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace kvcompress {

// A parameter of a codec. What it says here parses it, prints it, checks it and describes it in help and docs. Its
// value is a number: of a word its place among the choices, of a flag 0 or 1; of a digest and a list 1 where it is
// given, and StageSpec::digest and StageSpec::list have it.
struct Parameter {
  enum class Kind { kInteger, kIntegerOf, kReal, kWord, kFlag, kDigest, kList };

  std::string_view name;
  Kind kind;
  double fallback;  // where the spec does not give it
  double min = 0;   // kInteger, kReal and each of a kList: the bounds, both allowed
  double max = 0;
  std::string_view choices = {};  // of the other kinds: "32|64|128"
  std::string_view meaning;
  // Canonical specs leave it out where it has its fallback: their text, with which frames begin, is that of readers who
  // do not know the parameter.
  bool is_left_out = false;

  static constexpr Parameter Integer(std::string_view name, double fallback, double min, double max,
                                     std::string_view meaning) {
    return {name, Kind::kInteger, fallback, min, max, {}, meaning};
  }
  static constexpr Parameter IntegerOf(std::string_view name, double fallback, std::string_view choices,
                                       std::string_view meaning) {
    return {name, Kind::kIntegerOf, fallback, 0, 0, choices, meaning};
  }
  static constexpr Parameter Real(std::string_view name, double fallback, double min, double max,
                                  std::string_view meaning) {
    return {name, Kind::kReal, fallback, min, max, {}, meaning};
  }
  // 32 hex digits, or none; a codec has one at most.
  static constexpr Parameter Digest(std::string_view name, std::string_view meaning) {
    return {name, Kind::kDigest, 0, 0, 0, {}, meaning, true};
  }
  // Integers with slashes between, or none; a codec has one at most.
  static constexpr Parameter List(std::string_view name, double min, double max, std::string_view meaning) {
    return {name, Kind::kList, 0, min, max, {}, meaning, true};
  }
  constexpr Parameter LeftOut() const {
    Parameter parameter = *this;
    parameter.is_left_out = true;
    return parameter;
  }
  // `fallback` is a place among the choices; an enum that a codec reads with StageSpec::Choice has their order.
  static constexpr Parameter Word(std::string_view name, double fallback, std::string_view choices,
                                  std::string_view meaning) {
    return {name, Kind::kWord, fallback, 0, 0, choices, meaning};
  }
  static constexpr Parameter Flag(std::string_view name, bool fallback, std::string_view meaning) {
    return {name, Kind::kFlag, fallback ? 1.0 : 0.0, 0, 0, "true|false", meaning};
  }

  // The value that `text` says. INVALID_ARGUMENT, a sentence that begins with the codec's name, for one that is none.
  absl::StatusOr<double> Parse(std::string_view codec, std::string_view text) const;
  // The integers of a text that Parse takes for a list.
  static std::vector<uint32_t> ListOf(std::string_view text);
  // The canonical text of a value.
  std::string Print(double value) const;
  // What it may be: "32|64|128", "2..12"; "0.." where nothing but binary32 ends it.
  std::string Bounds() const;

 private:
  double ValueOf(size_t place, std::string_view choice) const;
};

// The shortest text that reads back as `value`.
std::string FormatReal(double value);

}  // namespace kvcompress
