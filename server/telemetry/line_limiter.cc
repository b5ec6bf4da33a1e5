#include "server/telemetry/line_limiter.h"

namespace kvcompress {

std::optional<uint64_t> LineLimiter::Admit(const char* file, int line, absl::Time now) {
  absl::MutexLock lock(&mutex_);
  Source& source = sources_[{file, line}];
  if (now < source.next) {
    ++source.left_out;
    return std::nullopt;
  }
  source.next = now + pause_;
  return std::exchange(source.left_out, 0);
}

}  // namespace kvcompress
