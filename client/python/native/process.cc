#include "client/python/native/process.h"

#include <nanobind/stl/string.h>

#include <atomic>
#include <string>

#include "absl/base/internal/sysinfo.h"

namespace nb = nanobind;

namespace kvcompress {

void Raise(const absl::Status& status) {
  const nb::object error = nb::module_::import_("kvcompress._errors")
                               .attr("from_status")(static_cast<int>(status.code()), std::string(status.message()));
  PyErr_SetObject(error.type().ptr(), error.ptr());
  throw nb::python_error();
}

void PrepareMutexes() {
  (void)absl::base_internal::NominalCPUFrequency();
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
}

Threads& Threads::Own() {
  static std::atomic<Threads*> known = nullptr;
  Threads* own = known;
  // Those of a parent count threads that are not here, and one of these may hold their lock.
  if (own == nullptr || own->process_ != getpid()) known = own = new Threads;
  return *own;
}

void Threads::Enter() {
  const absl::MutexLock lock(&mutex_);
  ++away_;
}

// Without the GIL: Python would end a thread that asks for it too late, in the middle of C++.
void Threads::BeforeReturn() {
  {
    const absl::MutexLock lock(&mutex_);
    if (!is_over_) return;
  }
  while (true) pause();
}

void Threads::Leave() {
  const absl::MutexLock lock(&mutex_);
  --away_;
}

void Threads::End(absl::Duration patience) {
  ends_ = true;
  const absl::MutexLock lock(&mutex_);
  const auto empty = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return away_ == 0; };
  is_over_ = !mutex_.AwaitWithTimeout(absl::Condition(&empty), patience);
}

Away::Away() {
  if (threads_.ends()) Raise(absl::CancelledError("the process ends, and makes no calls any more"));
  threads_.Enter();
  release_.emplace();
}

Away::~Away() {
  threads_.BeforeReturn();
  release_.reset();
  threads_.Leave();
}

}  // namespace kvcompress
