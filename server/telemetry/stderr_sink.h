#pragma once

#include <spdlog/details/null_mutex.h>
#include <spdlog/sinks/base_sink.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace kvcompress {

// Writes lines to a descriptor, from the one thread of an asynchronous logger, which may wait there for ever. When
// lines were dropped meanwhile, it says so before the next that it writes.
class StderrSink final : public spdlog::sinks::base_sink<spdlog::details::null_mutex> {
 public:
  // `dropped`: lines that never came here, so far. `about`: the text of the line about so many dropped ones.
  StderrSink(int fd, std::function<uint64_t()> dropped, std::function<std::string(uint64_t)> about)
      : fd_(fd), dropped_(std::move(dropped)), about_(std::move(about)) {}

  // Lines that could not be written.
  uint64_t failed() const { return failed_; }

  // How often the logger was flushed, and waits for a further time, until `deadline` at most: then all that was logged
  // before is written.
  uint64_t flushes();
  void AwaitFlush(uint64_t count, absl::Time deadline);

 private:
  void sink_it_(const spdlog::details::log_msg& message) override;
  void flush_() override;
  void Write(const spdlog::details::log_msg& message);

  const int fd_;
  const std::function<uint64_t()> dropped_;
  const std::function<std::string(uint64_t)> about_;
  uint64_t told_ = 0;  // of those that were dropped
  std::atomic<uint64_t> failed_ = 0;
  absl::Mutex mutex_;
  uint64_t flushes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvcompress
