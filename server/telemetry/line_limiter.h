#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace kvcompress {

// Lets through one line of each source in a while, and counts the others. Thread-safe. Sources must be few.
class LineLimiter {
 public:
  explicit LineLimiter(absl::Duration pause) : pause_(pause) {}

  // Whether a line of `source` (a file and line of code) may be written at `now`: then, how many of its lines were not,
  // since the last that was.
  std::optional<uint64_t> Admit(const char* file, int line, absl::Time now);

 private:
  struct Source {
    absl::Time next = absl::InfinitePast();
    uint64_t left_out = 0;
  };

  const absl::Duration pause_;
  absl::Mutex mutex_;
  std::map<std::pair<std::string, int>, Source> sources_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvcompress
