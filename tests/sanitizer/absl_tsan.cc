// Tells ThreadSanitizer about Abseil's locks. Debian's Abseil is not instrumented, so ThreadSanitizer sees
// neither its atomics nor its futexes and would call every use of a mutex a race. The functions below
// take the place of the library's (an executable's symbols come before a library's), state the order
// that the lock gives, and call the library's own.

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
}

#define KVC_STRING_OF(x) #x
#define KVC_STRING(x) KVC_STRING_OF(x)

namespace {

// The library's function with this mangled name, written without "_ZN" or "_ZNK", Abseil's namespace and its
// inline namespace, which carries the version.
template <typename Function>
Function* Library(const char* prefix, const char* rest) {
  const std::string inline_namespace = KVC_STRING(ABSL_OPTION_INLINE_NAMESPACE_NAME);
  const std::string name =
      prefix + std::string("4absl") + std::to_string(inline_namespace.size()) + inline_namespace + rest;
  void* symbol = dlsym(RTLD_NEXT, name.c_str());
  if (symbol == nullptr) {
    std::fprintf(stderr, "absl_tsan: the Abseil library has no %s\n", name.c_str());
    std::abort();
  }
  return reinterpret_cast<Function*>(symbol);
}

void Acquire(const void* address) { __tsan_acquire(const_cast<void*>(address)); }
void Release(const void* address) { __tsan_release(const_cast<void*>(address)); }

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

void Mutex::Lock() {
  static auto* const real = Library<void(Mutex*)>("_ZN", "5Mutex4LockEv");
  real(this);
  Acquire(this);
}

void Mutex::Unlock() {
  static auto* const real = Library<void(Mutex*)>("_ZN", "5Mutex6UnlockEv");
  Release(this);
  real(this);
}

bool Mutex::TryLock() {
  static auto* const real = Library<bool(Mutex*)>("_ZN", "5Mutex7TryLockEv");
  if (!real(this)) return false;
  Acquire(this);
  return true;
}

void Mutex::ReaderLock() {
  static auto* const real = Library<void(Mutex*)>("_ZN", "5Mutex10ReaderLockEv");
  real(this);
  Acquire(this);
}

void Mutex::ReaderUnlock() {
  static auto* const real = Library<void(Mutex*)>("_ZN", "5Mutex12ReaderUnlockEv");
  Release(this);
  real(this);
}

void Mutex::LockWhen(const Condition& condition) {
  static auto* const real = Library<void(Mutex*, const Condition&)>("_ZN", "5Mutex8LockWhenERKNS0_9ConditionE");
  real(this, condition);
  Acquire(this);
}

void Mutex::Await(const Condition& condition) {
  static auto* const real = Library<void(Mutex*, const Condition&)>("_ZN", "5Mutex5AwaitERKNS0_9ConditionE");
  Release(this);
  real(this, condition);
  Acquire(this);
}

bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  static auto* const real = Library<bool(Mutex*, const Condition&, Duration)>(
      "_ZN", "5Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE");
  Release(this);
  const bool met = real(this, condition, timeout);
  Acquire(this);
  return met;
}

bool Mutex::AwaitWithDeadline(const Condition& condition, Time deadline) {
  static auto* const real =
      Library<bool(Mutex*, const Condition&, Time)>("_ZN", "5Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE");
  Release(this);
  const bool met = real(this, condition, deadline);
  Acquire(this);
  return met;
}

bool Mutex::LockWhenWithTimeout(const Condition& condition, Duration timeout) {
  static auto* const real = Library<bool(Mutex*, const Condition&, Duration)>(
      "_ZN", "5Mutex19LockWhenWithTimeoutERKNS0_9ConditionENS0_8DurationE");
  const bool met = real(this, condition, timeout);
  Acquire(this);
  return met;
}

bool Mutex::LockWhenWithDeadline(const Condition& condition, Time deadline) {
  static auto* const real =
      Library<bool(Mutex*, const Condition&, Time)>("_ZN", "5Mutex20LockWhenWithDeadlineERKNS0_9ConditionENS0_4TimeE");
  const bool met = real(this, condition, deadline);
  Acquire(this);
  return met;
}

// Whoever gives the lock up evaluates the conditions of those who wait, before the order that the lock gives
// is stated here. The lock is held, so these reads are safe by construction.
bool Condition::Eval() const {
  static auto* const real = Library<bool(const Condition*)>("_ZNK", "9Condition4EvalEv");
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  const bool met = real(this);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  return met;
}

void CondVar::Wait(Mutex* mutex) {
  static auto* const real = Library<void(CondVar*, Mutex*)>("_ZN", "7CondVar4WaitEPNS0_5MutexE");
  Release(mutex);
  real(this, mutex);
  Acquire(mutex);
}

bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  static auto* const real =
      Library<bool(CondVar*, Mutex*, Duration)>("_ZN", "7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE");
  Release(mutex);
  const bool expired = real(this, mutex, timeout);
  Acquire(mutex);
  return expired;
}

bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  static auto* const real =
      Library<bool(CondVar*, Mutex*, Time)>("_ZN", "7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");
  Release(mutex);
  const bool expired = real(this, mutex, deadline);
  Acquire(mutex);
  return expired;
}

void Notification::Notify() {
  static auto* const real = Library<void(Notification*)>("_ZN", "12Notification6NotifyEv");
  Release(this);
  real(this);
}

void Notification::WaitForNotification() const {
  static auto* const real = Library<void(const Notification*)>("_ZNK", "12Notification19WaitForNotificationEv");
  real(this);
  Acquire(this);
}

bool Notification::WaitForNotificationWithTimeout(Duration timeout) const {
  static auto* const real = Library<bool(const Notification*, Duration)>(
      "_ZNK", "12Notification30WaitForNotificationWithTimeoutENS0_8DurationE");
  const bool notified = real(this, timeout);
  if (notified) Acquire(this);
  return notified;
}

bool BlockingCounter::DecrementCount() {
  static auto* const real = Library<bool(BlockingCounter*)>("_ZN", "15BlockingCounter14DecrementCountEv");
  Release(this);
  return real(this);
}

void BlockingCounter::Wait() {
  static auto* const real = Library<void(BlockingCounter*)>("_ZN", "15BlockingCounter4WaitEv");
  real(this);
  Acquire(this);
}

// The graph of the order of locks, in which a debug build of Abseil enters every lock, is memory that the sanitizer
// does not see to be guarded.
[[maybe_unused]] const bool without_graph = [] {
  SetMutexDeadlockDetectionMode(OnDeadlockCycle::kIgnore);
  return true;
}();

ABSL_NAMESPACE_END
}  // namespace absl
