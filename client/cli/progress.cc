#include "client/cli/progress.h"

#include <unistd.h>

#include <string>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/cli/printable.h"

namespace kvcompress {
namespace {

constexpr absl::Duration kInterval = absl::Milliseconds(100);
constexpr int kWidth = 30;

void Print(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

}  // namespace

ProgressBar::ProgressBar(const char* verb)
    : verb_(verb), enabled_(isatty(STDERR_FILENO) == 1), start_(absl::Now()), next_(start_) {}

ProgressBar::~ProgressBar() {
  if (drawn_) Print("\r\033[K");
}

void ProgressBar::Update(uint64_t done, uint64_t total) {
  if (!enabled_ || total == 0) return;
  const absl::Time now = absl::Now();
  if (now < next_) return;
  next_ = now + kInterval;
  drawn_ = true;
  const double part = static_cast<double>(done) / static_cast<double>(total);
  const int filled = static_cast<int>(part * kWidth);
  const double mebibytes = static_cast<double>(done) / (1 << 20);
  const double seconds = absl::ToDoubleSeconds(now - start_);
  Print(absl::StrFormat("\r%s [%s%s] %3.0f%% %.1f MiB, %.0f MiB/s\033[K", verb_, std::string(filled, '#'),
                        std::string(kWidth - filled, '.'), 100 * part, mebibytes,
                        seconds > 0 ? mebibytes / seconds : 0.0));
}

SweepProgress::SweepProgress(size_t specs) : specs_(specs), terminal_(isatty(STDERR_FILENO) == 1) {}

SweepProgress::~SweepProgress() {
  if (terminal_) Print("\r\033[K");
}

void SweepProgress::Begin(std::string_view spec) {
  ++done_;
  if (terminal_) Print(absl::StrFormat("\rsweep [%d/%d] %s\033[K", done_, specs_, spec));
}

void SweepProgress::End(std::string_view spec, std::string_view outcome) {
  if (!terminal_) Print(absl::StrFormat("[%d/%d] %s: %s\n", done_, specs_, spec, OneLine(outcome)));
}

}  // namespace kvcompress
