#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"

// The daemon's log: lines on stderr, as text ("message key=value ...") or JSON objects. Of what a client sent, only its
// request id and what the text of a failed call quotes are logged above the debug level; values with other characters
// than plain ones are escaped as in JSON, so that no client writes lines or fields of its own. A thread writes them:
// nobody waits for whoever reads stderr, and what is not read in time is dropped, and counted.
namespace kvcompress {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

struct LogField {
  LogField(std::string_view k, std::string_view v) : key(k), value(v), quoted(true) {}
  LogField(std::string_view k, const char* v) : LogField(k, std::string_view(v)) {}
  LogField(std::string_view k, const std::string& v) : LogField(k, std::string_view(v)) {}
  LogField(std::string_view k, uint64_t v) : key(k), value(std::to_string(v)), quoted(false) {}
  LogField(std::string_view k, double v);

  std::string key;
  std::string value;
  bool quoted;  // text, not a number
};

// Call it once, before the first line. `level` is debug, info, warning or error. RESOURCE_EXHAUSTED without a thread.
absl::Status SetUpLog(std::string_view level, bool json);

// Lines that were not written, since the daemon started.
uint64_t LogLinesDropped();

// Waits until all is written that was logged before, no longer than `patience`.
void FlushLog(absl::Duration patience);

// Whether lines of this level are written: for callers whose fields are costly to make.
bool Logs(LogLevel level);

void Log(LogLevel level, std::string_view message, std::span<const LogField> fields);
inline void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields = {}) {
  Log(level, message, std::span<const LogField>(fields.begin(), fields.size()));
}

}  // namespace kvcompress
