#pragma once

#include <cstdint>

#include "absl/time/time.h"

namespace kvcompress {

// A progress bar on standard error, drawn only where that is a terminal, at most ten times a second, and wiped at the
// end, so that an error message stands alone.
class ProgressBar {
 public:
  explicit ProgressBar(const char* verb);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // One call at a time.
  void Update(uint64_t done, uint64_t total);

 private:
  const char* const verb_;
  const bool enabled_;
  const absl::Time start_;
  absl::Time next_;
  bool drawn_ = false;
};

}  // namespace kvcompress
