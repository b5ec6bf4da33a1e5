#pragma once

#include <atomic>
#include <cstddef>

namespace kvcompress {

// Runs a step for threads that ask for it, one thread at a time, and at least once after each of them has asked. Who
// asks while another thread is at it does not wait: that thread runs the step again. Each run sees all that those
// before it have written. Thread-safe; must not be destroyed before the last Run has returned.
class Serializer {
 public:
  // `step` is the same thing for all callers, and may ask again itself.
  template <typename Step>
  void Run(const Step& step) {
    if (asked_.fetch_add(1, std::memory_order_acq_rel) > 0) return;
    for (size_t answered = 1; answered > 0;) {
      step();
      answered = asked_.fetch_sub(answered, std::memory_order_acq_rel) - answered;
    }
  }

 private:
  std::atomic<size_t> asked_ = 0;  // calls that no run of the step answers yet; more than none: a thread is at it
};

}  // namespace kvcompress
