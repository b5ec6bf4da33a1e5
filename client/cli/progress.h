#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

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

// Writes a line for each spec of a sweep to standard error, on a terminal one line that is overwritten.
class SweepProgress {
 public:
  explicit SweepProgress(size_t specs);
  ~SweepProgress();
  SweepProgress(const SweepProgress&) = delete;
  SweepProgress& operator=(const SweepProgress&) = delete;

  void Begin(std::string_view spec);
  void End(std::string_view spec, std::string_view outcome);

 private:
  const size_t specs_;
  const bool terminal_;
  size_t done_ = 0;
};

}  // namespace kvcompress
