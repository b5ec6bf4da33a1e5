#include "server/telemetry/stderr_sink.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>

namespace kvcompress {
namespace {

// False when it cannot be written, or not to its end.
bool WriteAll(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t put = write(fd, text.data(), text.size());
    if (put >= 0) {
      text.remove_prefix(static_cast<size_t>(put));
    } else if (errno == EAGAIN) {  // whoever made the pipe may have chosen that it does not block
      pollfd writable{fd, POLLOUT, 0};
      poll(&writable, 1, -1);
    } else if (errno != EINTR) {
      return false;
    }
  }
  return true;
}

}  // namespace

uint64_t StderrSink::flushes() {
  absl::MutexLock lock(&mutex_);
  return flushes_;
}

void StderrSink::AwaitFlush(uint64_t count, absl::Time deadline) {
  const auto flushed = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return flushes_ >= count; };
  absl::MutexLock lock(&mutex_);
  mutex_.AwaitWithDeadline(absl::Condition(&flushed), deadline);
}

void StderrSink::sink_it_(const spdlog::details::log_msg& message) {
  if (const uint64_t dropped = dropped_() + failed_; dropped > told_) {
    const std::string text = about_(dropped - told_);
    told_ = dropped;
    spdlog::details::log_msg notice = message;
    notice.level = spdlog::level::warn;
    notice.payload = text;
    Write(notice);
  }
  Write(message);
}

void StderrSink::flush_() {
  absl::MutexLock lock(&mutex_);
  ++flushes_;
}

void StderrSink::Write(const spdlog::details::log_msg& message) {
  spdlog::memory_buf_t line;
  formatter_->format(message, line);
  if (!WriteAll(fd_, std::string_view(line.data(), line.size()))) ++failed_;
}

}  // namespace kvcompress
