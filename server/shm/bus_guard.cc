#include "server/shm/bus_guard.h"

#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>

#include "absl/base/call_once.h"
#include "absl/strings/str_format.h"

namespace kvcompress {
namespace {

// One guarded mapping, as the handler sees it: nothing but lock-free atomics. `begin` is 0 while the slot has no
// mapping, kTaken while one comes or goes. A handler acts on a mapping only while it has the slot pinned, and whoever
// removes the mapping waits for the pins: a late handler cannot map zeros over memory that has another owner by then.
struct Slot {
  static constexpr uintptr_t kTaken = 1;

  std::atomic<uintptr_t> begin = 0;
  std::atomic<size_t> size = 0;
  std::atomic<uint32_t> pins = 0;
  std::atomic<bool> broken = false;

  // The mapping's end when `address` is in it, else 0.
  uintptr_t EndIfHolds(uintptr_t address) const {
    const uintptr_t at = begin;
    const size_t bytes = size;
    return at > kTaken && address >= at && address - at < bytes ? at + bytes : 0;
  }
};
static_assert(std::atomic<uintptr_t>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

// Global, because a signal handler belongs to the process and takes no argument of ours.
constinit std::array<Slot, kMaxGuardedMappings> slots;
struct sigaction previous_action;

// Maps zero pages of this process at the page of `address` and the next ones, 512 in all. Not at the whole mapping: a
// machine that promises no more memory than it has may not have as much. Several threads may do so for one mapping; the
// last replaces zeros by zeros.
bool MapZeros(uintptr_t address, uintptr_t end) {
  constexpr size_t kPages = 512;
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = address & ~(page - 1);
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  void* at = reinterpret_cast<void*>(begin);
  return mmap(at, std::min(kPages * page, end - begin), PROT_READ | PROT_WRITE,
              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == at;
}

// Whether the access to `address` can be tried again.
bool Repair(Slot& slot, uintptr_t address) {
  slot.pins.fetch_add(1);
  const uintptr_t end = slot.EndIfHolds(address);
  if (end != 0) slot.broken = true;  // before anybody can read the zeros
  const bool repaired = end != 0 && MapZeros(address, end);
  slot.pins.fetch_sub(1);
  return repaired;
}

void PassOn(int signal, siginfo_t* info, void* context) {
  if ((previous_action.sa_flags & SA_SIGINFO) != 0) return previous_action.sa_sigaction(signal, info, context);
  const bool by_a_fault = info->si_code > 0;
  if (previous_action.sa_handler == SIG_IGN && !by_a_fault) return;
  if (previous_action.sa_handler != SIG_DFL && previous_action.sa_handler != SIG_IGN) {
    return previous_action.sa_handler(signal);
  }
  // This signal comes when the handler returns, and ends the process.
  struct sigaction action {};
  action.sa_handler = SIG_DFL;
  sigaction(signal, &action, nullptr);
  raise(signal);
}

void OnSigbus(int signal, siginfo_t* info, void* context) {
  const int saved_errno = errno;
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  bool repaired = false;
  // With other codes, such as those of a signal that was sent, si_addr is not an address that was accessed.
  if (info->si_code == BUS_ADRERR || info->si_code == BUS_MCEERR_AR) {
    for (Slot& slot : slots) {
      if (slot.EndIfHolds(address) != 0 && Repair(slot, address)) {
        repaired = true;
        break;
      }
    }
  }
  if (!repaired) PassOn(signal, info, context);
  errno = saved_errno;
}

void InstallHandler() {
  struct sigaction action {};
  action.sa_sigaction = OnSigbus;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, &action, &previous_action);
}

class GuardedRegion final : public SharedRegion {
 public:
  GuardedRegion(SharedMapping mapping, Slot& slot) : mapping_(std::move(mapping)), slot_(slot) {}

  ~GuardedRegion() override {
    slot_.begin = Slot::kTaken;
    while (slot_.pins != 0) sched_yield();
    mapping_ = SharedMapping();
    slot_.begin = 0;
  }

  MutableByteSpan bytes() const override { return mapping_.bytes(); }
  bool intact() const override { return !slot_.broken; }
  bool is_writable() const override { return mapping_.is_writable(); }

 private:
  SharedMapping mapping_;
  Slot& slot_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<SharedRegion>> GuardMapping(SharedMapping mapping) {
  static absl::once_flag installed;
  absl::call_once(installed, InstallHandler);
  for (Slot& slot : slots) {
    uintptr_t free = 0;
    if (!slot.begin.compare_exchange_strong(free, Slot::kTaken)) continue;
    slot.size = mapping.pages().size();
    slot.broken = false;
    slot.begin = reinterpret_cast<uintptr_t>(mapping.pages().data());
    return std::make_shared<GuardedRegion>(std::move(mapping), slot);
  }
  return absl::ResourceExhaustedError(
      absl::StrFormat("the limit of %d shared memory regions is reached", kMaxGuardedMappings));
}

}  // namespace kvcompress
