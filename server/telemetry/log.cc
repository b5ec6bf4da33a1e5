#include "server/telemetry/log.h"

#include <grpc/support/log.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace kvcompress {
namespace {

bool log_json = false;

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

void LogGrpc(gpr_log_func_args* args) {
  const bool error = args->severity == GPR_LOG_SEVERITY_ERROR;
  Log(error ? LogLevel::kWarning : LogLevel::kDebug, "grpc", {{"text", args->message}});
}

}  // namespace

LogField::LogField(std::string_view k, double v) : key(k), value(fmt::format("{:.6g}", v)), quoted(false) {}

void SetUpLog(std::string_view level, bool json) {
  log_json = json;
  auto logger = spdlog::stderr_logger_mt("kv-compressd");
  logger->set_level(spdlog::level::from_str(std::string(level)));
  logger->set_pattern(json ? R"({"time":"%Y-%m-%dT%H:%M:%S.%e%z","level":"%l",%v})" : "%Y-%m-%dT%H:%M:%S.%e%z %l %v");
  logger->flush_on(spdlog::level::debug);
  spdlog::set_default_logger(std::move(logger));
  gpr_set_log_function(LogGrpc);
}

bool Logs(LogLevel level) { return spdlog::default_logger_raw()->should_log(ToSpdlog(level)); }

void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields) {
  const spdlog::level::level_enum spd_level = ToSpdlog(level);
  spdlog::logger* logger = spdlog::default_logger_raw();
  if (!logger->should_log(spd_level)) return;
  std::string line = log_json ? "\"message\":" + Quoted(message) : std::string(message);
  for (const LogField& field : fields) {
    const bool quote = field.quoted && (log_json || !IsPlain(field.value));
    const std::string value = quote ? Quoted(field.value) : field.value;
    line += log_json ? fmt::format(",{}:{}", Quoted(field.key), value) : fmt::format(" {}={}", field.key, value);
  }
  logger->log(spd_level, "{}", line);
}

}  // namespace kvcompress
