#include "server/telemetry/log.h"

#include <grpc/support/log.h>
#include <spdlog/async_logger.h>
#include <spdlog/details/thread_pool.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <system_error>

#include "absl/time/clock.h"
#include "server/telemetry/line_limiter.h"
#include "server/telemetry/stderr_sink.h"

namespace kvcompress {
namespace {

// Lines that wait for a slow reader of standard error; the oldest make room for the newest.
constexpr size_t kWaitingLines = 2048;

bool log_json = false;

// Never destroyed: the thread may wait for a reader when the process ends.
struct Output {
  std::shared_ptr<spdlog::details::thread_pool> thread;
  std::shared_ptr<StderrSink> sink;
};
Output* output = nullptr;

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug: return spdlog::level::debug;
    case LogLevel::kInfo: return spdlog::level::info;
    case LogLevel::kWarning: return spdlog::level::warn;
    case LogLevel::kError: return spdlog::level::err;
  }
  return spdlog::level::info;
}

std::string Quoted(std::string_view text) {
  return nlohmann::json(text).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

// Whether a value needs no quotes in a text line.
bool IsPlain(std::string_view text) {
  const auto plain = [](char c) { return c > ' ' && c < 0x7f && c != '"' && c != '='; };
  return !text.empty() && std::all_of(text.begin(), text.end(), plain);
}

std::string Compose(std::string_view message, std::span<const LogField> fields) {
  std::string line = log_json ? "\"message\":" + Quoted(message) : std::string(message);
  for (const LogField& field : fields) {
    const bool quote = field.quoted && (log_json || !IsPlain(field.value));
    const std::string value = quote ? Quoted(field.value) : field.value;
    line += log_json ? fmt::format(",{}:{}", Quoted(field.key), value) : fmt::format(" {}={}", field.key, value);
  }
  return line;
}

std::string AboutDroppedLines(uint64_t lines) {
  const LogField field("lines", lines);
  return Compose("lines of this log were dropped, because nobody read them in time", std::span(&field, 1));
}

// Clients cause some of gRPC's errors, a failed handshake above all, as often as they like.
void LogGrpc(gpr_log_func_args* args) {
  if (args->severity != GPR_LOG_SEVERITY_ERROR) return Log(LogLevel::kDebug, "grpc", {{"text", args->message}});
  if (std::string_view(args->message).starts_with("assertion failed")) {
    Log(LogLevel::kError, "grpc", {{"text", args->message}});
    return FlushLog(absl::Seconds(1));  // the process ends when this returns
  }
  static LineLimiter& limiter = *new LineLimiter(absl::Seconds(10));
  const std::optional<uint64_t> left_out = limiter.Admit(args->file, args->line, absl::Now());
  if (!left_out) return;
  if (*left_out == 0) return Log(LogLevel::kWarning, "grpc", {{"text", args->message}});
  Log(LogLevel::kWarning, "grpc", {{"text", args->message}, {"left_out", *left_out}});
}

}  // namespace

LogField::LogField(std::string_view k, double v) : key(k), value(fmt::format("{:.6g}", v)), quoted(false) {}

absl::Status SetUpLog(std::string_view level, bool json) {
  log_json = json;
  auto started = std::make_unique<Output>();
  try {
    started->thread = std::make_shared<spdlog::details::thread_pool>(kWaitingLines, 1);
  } catch (const std::system_error&) {
    return absl::ResourceExhaustedError("no thread can be started for the log");
  }
  output = started.release();
  output->sink = std::make_shared<StderrSink>(
      STDERR_FILENO, [] { return uint64_t{output->thread->overrun_counter()}; }, AboutDroppedLines);
  auto logger = std::make_shared<spdlog::async_logger>("kv-compressd", output->sink, output->thread,
                                                       spdlog::async_overflow_policy::overrun_oldest);
  logger->set_level(spdlog::level::from_str(std::string(level)));
  logger->set_pattern(json ? R"({"time":"%Y-%m-%dT%H:%M:%S.%e%z","level":"%l",%v})" : "%Y-%m-%dT%H:%M:%S.%e%z %l %v");
  spdlog::set_default_logger(std::move(logger));
  gpr_set_log_function(LogGrpc);
  return absl::OkStatus();
}

uint64_t LogLinesDropped() {
  return output == nullptr ? 0 : output->thread->overrun_counter() + output->sink->failed();
}

void FlushLog(absl::Duration patience) {
  if (output == nullptr) return;
  const uint64_t before = output->sink->flushes();
  spdlog::default_logger_raw()->flush();
  output->sink->AwaitFlush(before + 1, absl::Now() + patience);
}

bool Logs(LogLevel level) { return spdlog::default_logger_raw()->should_log(ToSpdlog(level)); }

void Log(LogLevel level, std::string_view message, std::span<const LogField> fields) {
  spdlog::logger* logger = spdlog::default_logger_raw();
  if (!logger->should_log(ToSpdlog(level))) return;
  logger->log(ToSpdlog(level), "{}", Compose(message, fields));
}

}  // namespace kvcompress
